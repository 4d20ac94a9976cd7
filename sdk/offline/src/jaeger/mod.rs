//! The Jaeger UI's JSON: its model, and the ways from OTLP and from our spans into it.

pub mod model;
pub mod otlp;
pub mod span;
mod tag;
mod tree;
pub mod write;
