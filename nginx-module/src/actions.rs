//! The actions that the module records, and the phases of the upstream tries.

/// The request came without an id and got one here.
pub(crate) const START_TO_SCHEDULE: &str = "Start to schedule";
/// The request arrived.
pub(crate) const TIME_RECEIVED: &str = "Time received";
/// The first tokens of the answer, one by one.
pub(crate) const TOKENS: [&str; 3] = [
    "Proxy got first token",
    "Proxy got second token",
    "Proxy got third token",
];
/// The request is over; its attributes become those of the root span.
pub(crate) const RECEIVED_ALL_TOKENS: &str = "Received all tokens";

/// The phase of the root span.
pub(crate) const ROOT: &str = "Trace for Omni Proxy";

/// What starts and ends a subrequest that nginx answers itself.
pub(crate) const START_SUBREQUEST: &str = "Start subrequest";
pub(crate) const FINISH_SUBREQUEST: &str = "Finish subrequest";

/// What an upstream is to the request, by `omnitrace_upstream_role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Try {
    /// The prefill node.
    Prefill,
    /// The decode node.
    Decode,
    /// Any other server.
    Plain,
}

impl Try {
    /// How many kinds there are.
    pub(crate) const COUNT: usize = 3;

    /// The CLIENT span of a try.
    pub(crate) fn phase(self) -> &'static str {
        match self {
            Self::Prefill => "P running",
            Self::Decode => "D running",
            Self::Plain => "Upstream request",
        }
    }

    /// The action that starts it.
    pub(crate) fn start(self) -> &'static str {
        match self {
            Self::Prefill => "Enter state P running",
            Self::Decode => "Enter state D running",
            Self::Plain => "Start upstream request",
        }
    }

    /// The action that ends it.
    pub(crate) fn finish(self) -> &'static str {
        match self {
            Self::Prefill => "Finish P running",
            Self::Decode => "Finish D running",
            Self::Plain => "Finish upstream request",
        }
    }
}
