//! omnitrace: where does the time of an LLM request go?
//!
//! ```text
//!  Recorder ─► Queue ─► Assembler ─► Span ─► Delivery ─┬─► OTLP ─► Collector
//!  (caller)           (exporter thread, one per process) └─► legacy log
//! ```
//! A [`Pipeline`] is one process's share of it. The offline converter feeds the
//! same [`assembler`] from the legacy log.

pub mod assembler;
mod carry;
pub mod clock;
pub mod config;
pub mod context;
pub mod decode;
pub mod delivery;
pub mod diagnostics;
mod encode;
pub mod engine;
pub mod event;
pub mod id;
mod key;
pub mod layer;
pub mod legacy_log;
pub mod node;
pub mod pipeline;
mod process;
pub mod propagation;
mod queue;
pub mod recorder;
pub mod sampler;
mod scopes;
pub mod span;
mod span_processor;
pub mod sse;
pub mod value;
pub mod vocabulary;

pub use config::Config;
pub use context::SpanContext;
pub use delivery::Stats;
pub use event::{Action, FinishedPhase, FreeSpan, Parent};
pub use key::{Key, KeyId, KeyRef};
pub use layer::{Layer, layer};
pub use pipeline::Pipeline;
pub use process::{Tracing, shutdown, start, start_with};
pub use queue::PackedAttributes;
pub use recorder::Recorder;
pub use sampler::Sampler;
pub use span::Span;
pub use span_processor::{SpanProcessor, span_processor};
pub use value::{Attribute, Value, ValueRef};
pub use vocabulary::Vocabulary;

/// To be called in a forked child before it records anything: what belongs to the
/// parent's threads is forgotten.
pub fn after_fork_in_child() {
    id::restart_random();
    clock::restart();
}
