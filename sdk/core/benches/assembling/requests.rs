//! The requests that the bench plays, as the vLLM plugin and nginx record them.

use omnitrace::event::Attributes;
use omnitrace::{KeyRef, SpanContext, ValueRef};

/// One role's share of a request.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) role: &'static str,
    /// Whether a context comes with it.
    called: bool,
    pub(crate) actions: &'static [(&'static str, Attributes<'static>)],
}

impl Case {
    pub(crate) fn caller(&self) -> Option<SpanContext> {
        let traceparent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        SpanContext::parse(traceparent).filter(|_| self.called)
    }
}

pub(crate) const CASES: [Case; 3] = [
    Case {
        name: "prefill",
        role: "prefill",
        called: true,
        actions: &[
            ("PD api server get request", &[]),
            ("Start process request in prefill engine", &[]),
            ("Prefill add waiting queue", &[]),
            ("try to schedule in waiting queue", &[]),
            ("Prefill get new_blocks", &[]),
            ("success add to seq groups", &[]),
            ("Prefill start execute_model", &[]),
            ("Prefill done execute_model", &[]),
            ("Start to send output in prefill stage", &[]),
            ("Finish prefill pickle and start response", &[]),
        ],
    },
    Case {
        name: "decode",
        role: "decode",
        called: true,
        actions: &[
            ("Enter decode to generate", &[]),
            ("Start to dispatch decode request", &[]),
            ("Add need pulling sequence", &[]),
            ("Start pull kv", &[]),
            ("Finish pull kv", &[]),
            ("Start append running sequece for decode", &[]),
            ("Start to send output", &[]),
            ("First decode output token", &[]),
            ("Second decode output token", &[]),
            ("Third decode output token", &[]),
            ("Finish decode pickle and start response", &[]),
        ],
    },
    Case {
        name: "proxy",
        role: "proxy",
        called: false,
        actions: &[
            ("Start to schedule", &[]),
            ("Time received", &[]),
            ("Enter state tokenization", &[]),
            ("Enter state APC matching", &[]),
            ("Enter state P waiting", &[]),
            ("Enter state P scheduled", &[]),
            (
                "Enter state P running",
                &[
                    (KeyRef::Text("server.address"), ValueRef::Str("10.0.0.2")),
                    (KeyRef::Text("server.port"), ValueRef::I64(8000)),
                ],
            ),
            ("Finish P running", &[]),
            ("Enter state D waiting", &[]),
            ("Enter state D scheduled", &[]),
            (
                "Enter state D running",
                &[
                    (KeyRef::Text("server.address"), ValueRef::Str("10.0.0.3")),
                    (KeyRef::Text("server.port"), ValueRef::I64(8000)),
                ],
            ),
            ("Proxy got first token", &[]),
            ("Proxy got second token", &[]),
            ("Proxy got third token", &[]),
            ("Finish D running", &[]),
            (
                "Received all tokens",
                &[
                    (KeyRef::Text("http.request.method"), ValueRef::Str("POST")),
                    (
                        KeyRef::Text("url.path"),
                        ValueRef::Str("/v1/chat/completions"),
                    ),
                    (KeyRef::Text("url.scheme"), ValueRef::Str("http")),
                    (KeyRef::Text("http.route"), ValueRef::Str("/v1/")),
                    (
                        KeyRef::Text("network.protocol.version"),
                        ValueRef::Str("1.1"),
                    ),
                    (
                        KeyRef::Text("server.address"),
                        ValueRef::Str("llm.example.org"),
                    ),
                    (KeyRef::Text("server.port"), ValueRef::I64(80)),
                    (KeyRef::Text("client.address"), ValueRef::Str("192.0.2.17")),
                    (
                        KeyRef::Text("user_agent.original"),
                        ValueRef::Str("curl/8.5.0"),
                    ),
                    (
                        KeyRef::Text("http.response.status_code"),
                        ValueRef::I64(200),
                    ),
                    (
                        KeyRef::Text("gen_ai.usage.output_tokens"),
                        ValueRef::I64(128),
                    ),
                ],
            ),
        ],
    },
];

/// Request ids as vLLM makes them.
pub(crate) fn request_ids(first: u64, count: u64) -> Vec<String> {
    let id = |n| format!("chatcmpl-38a4f1c0-5b1e-4c52-9c0d-{n:012x}");
    (first..first + count).map(id).collect()
}
