//! Finished spans that stand in the log as they are.

use std::sync::Arc;

use omnitrace::legacy_log::{ActionLine, Line, parse_line};
use omnitrace::span::{Source, Span};

use super::foreign;

/// The span of a line that holds one; none if its ids are not valid.
pub(super) fn span(line: &ActionLine<'_>) -> Option<Span> {
    let suffix = line.suffix.span.as_ref()?;
    let (role, node) = line.source.unwrap_or(("proxy", ""));
    let source = Arc::new(Source {
        role: line.suffix.role.as_deref().unwrap_or(role).into(),
        node: node.into(),
    });
    suffix.span(&line.action, line.time, &line.suffix.attributes, source)
}

/// The same from the line's text.
pub(super) fn read(text: &[u8]) -> Option<Span> {
    if let Some(span) = foreign::from_bytes(text) {
        return Some(span);
    }
    match parse_line(text) {
        Ok(Line::Action(line)) => span(&line),
        _ => None,
    }
}
