//! Wrong uses of a span: said once each, for a span may be in a hot loop.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

/// A wrong use that is survived.
#[derive(Clone, Copy)]
pub(crate) enum Mistake {
    EndTwice,
    ChangeEnded,
    AttributeKey,
    Attributes,
    Kind,
    Time,
    Link,
    Links,
    Status,
    Description,
    Context,
    Generator,
    Sampler,
    Processor,
}

const COUNT: usize = Mistake::Processor as usize + 1;
static SAID: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];

impl Mistake {
    /// Says it through Python's `logging`, logger `omnitrace`. `what` is a sentence
    /// that names the thing and what happens instead. Python code runs.
    #[cold]
    pub(crate) fn say(self, py: Python<'_>, what: &str) {
        if SAID[self as usize].swap(true, Ordering::Relaxed) {
            return;
        }
        let said = || -> PyResult<()> {
            let logger = py
                .import("logging")?
                .call_method1("getLogger", ("omnitrace",))?;
            let text = format!("{what} (said once)");
            logger.call_method1("warning", ("%s", text)).map(|_| ())
        };
        // A logger that fails is not a reason to fail.
        let _ = said();
    }
}
