//! The services and their operations, for the search form's lists.

use std::collections::BTreeMap;

use omnitrace_offline::jaeger::model::{Process, Span};
use serde::Serialize;

/// One operation of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::serve) struct Operation {
    /// The span name.
    pub(in crate::serve) name: String,
    /// `server`, `client`, …; empty where the span had none.
    pub(in crate::serve) span_kind: String,
}

/// Counts the spans behind each entry, so that an entry goes with its last span.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    services: BTreeMap<String, BTreeMap<Operation, usize>>,
}

impl Catalogue {
    pub(super) fn add(&mut self, process: &Process, span: &Span) {
        if !self.services.contains_key(&process.service_name) {
            let name = process.service_name.clone();
            self.services.insert(name, BTreeMap::new());
        }
        if let Some(operations) = self.services.get_mut(&process.service_name) {
            *operations.entry(operation(span)).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, process: &Process, span: &Span) {
        let Some(operations) = self.services.get_mut(&process.service_name) else {
            return;
        };
        let operation = operation(span);
        if let Some(spans) = operations.get_mut(&operation) {
            *spans -= 1;
            if *spans == 0 {
                operations.remove(&operation);
            }
        }
        if operations.is_empty() {
            self.services.remove(&process.service_name);
        }
    }

    pub(super) fn services(&self) -> Vec<String> {
        self.services.keys().cloned().collect()
    }

    pub(super) fn operations(&self, service: &str) -> Vec<Operation> {
        let operations = self.services.get(service);
        operations.map_or_else(Vec::new, |operations| operations.keys().cloned().collect())
    }
}

fn operation(span: &Span) -> Operation {
    let kind = span.tags.iter().find(|tag| tag.key == "span.kind");
    Operation {
        name: span.operation_name.clone(),
        span_kind: kind.map_or_else(String::new, |tag| tag.value.text().into_owned()),
    }
}
