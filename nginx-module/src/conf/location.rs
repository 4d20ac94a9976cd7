//! Directives of a location: what is traced there, and how.

use std::ffi::CStr;
use std::ptr;

use nginx_sys::{
    NGX_HTTP_LOC_CONF_OFFSET, ngx_http_compile_complex_value, ngx_http_compile_complex_value_t,
    ngx_http_complex_value_t, ngx_palloc, ngx_str_t,
};
use ngx::core::Status;
use ngx::http::{HttpModuleLocationConf, Merge, MergeConfigError};

use super::{Args, ConfError, Directive, fill};
use crate::HttpOmnitraceModule;
use crate::actions::Try;
use crate::request::Request;
use crate::status::Format;

/// A value with variables, compiled; it lives as long as the configuration.
pub(crate) type ComplexValue = *mut ngx_http_complex_value_t;

/// Whether requests are traced.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trace {
    /// The module stays out of it.
    Off,
    /// They are, unless the caller has decided otherwise.
    On,
    /// If the value is `on` or `1`, and unless the caller has decided otherwise. Other requests
    /// are not recorded, and the upstream is told so.
    Variable(ComplexValue),
}

/// What happens to `traceparent` and `tracestate`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Propagation {
    /// The caller's trace is continued.
    pub(crate) extract: bool,
    /// The upstream is told of ours.
    pub(crate) inject: bool,
}

/// Which answers are searched for tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenSearch {
    /// Those of type `text/event-stream`.
    Auto,
    /// All.
    On,
    /// None.
    Off,
}

/// Settings of a location; None is the next outer block's.
#[derive(Debug, Default)]
pub(crate) struct LocationConfig {
    trace: Option<Trace>,
    context: Option<Propagation>,
    span_name: Option<ComplexValue>,
    span_attrs: Vec<(String, ComplexValue)>,
    request_id: Option<bool>,
    tokens: Option<TokenSearch>,
    upstream_role: Option<Try>,
    pub(super) omni_proxy: Option<bool>,
    /// Of this block alone; the inner None lets the client choose.
    pub(super) status: Option<Option<Format>>,
}

impl LocationConfig {
    /// The settings of the location that handles a request.
    pub(crate) fn of<'r>(request: Request<'r>) -> &'r Self {
        static NOTHING: LocationConfig = LocationConfig {
            trace: None,
            context: None,
            span_name: None,
            span_attrs: Vec::new(),
            request_id: None,
            tokens: None,
            upstream_role: None,
            omni_proxy: None,
            status: None,
        };
        HttpOmnitraceModule::location_conf(&*request).unwrap_or(&NOTHING)
    }

    pub(crate) fn trace(&self) -> Trace {
        self.trace.unwrap_or(Trace::Off)
    }

    pub(crate) fn context(&self) -> Propagation {
        self.context.unwrap_or(Propagation {
            extract: true,
            inject: true,
        })
    }

    pub(crate) fn span_name(&self) -> Option<ComplexValue> {
        self.span_name
    }

    pub(crate) fn span_attrs(&self) -> &[(String, ComplexValue)] {
        &self.span_attrs
    }

    pub(crate) fn request_id(&self) -> bool {
        self.request_id.unwrap_or(true)
    }

    pub(crate) fn tokens(&self) -> TokenSearch {
        self.tokens.unwrap_or(TokenSearch::Auto)
    }

    /// None: the configuration does not say.
    pub(crate) fn upstream_role(&self) -> Option<Try> {
        self.upstream_role
    }

    /// How the status page is shown; None lets the client choose.
    pub(crate) fn status(&self) -> Option<Format> {
        self.status.flatten()
    }

    /// Whether Omni Proxy's lines are read.
    pub(crate) fn omni_proxy(&self) -> bool {
        self.omni_proxy.unwrap_or(false)
    }
}

// SAFETY: the values are read only, and by nginx's one thread.
unsafe impl Sync for LocationConfig {}

impl Merge for LocationConfig {
    fn merge(&mut self, outer: &Self) -> Result<(), MergeConfigError> {
        self.trace = self.trace.or(outer.trace);
        self.context = self.context.or(outer.context);
        self.span_name = self.span_name.or(outer.span_name);
        // As nginx-otel and add_header have it: own ones replace all of the outer block's.
        if self.span_attrs.is_empty() {
            self.span_attrs = outer.span_attrs.clone();
        }
        self.request_id = self.request_id.or(outer.request_id);
        self.tokens = self.tokens.or(outer.tokens);
        self.upstream_role = self.upstream_role.or(outer.upstream_role);
        self.omni_proxy = self.omni_proxy.or(outer.omni_proxy);
        Ok(())
    }
}

/// `omnitrace on|off|$variable`
pub(super) struct Omnitrace;

impl Directive for Omnitrace {
    const NAME: &'static CStr = c"omnitrace";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let trace = match args.text(1)? {
            "on" => Trace::On,
            "off" => Trace::Off,
            text if text.contains('$') => Trace::Variable(compile(args, 1)?),
            _ => return Err(args.refuse(1, "it must be \"on\", \"off\" or a variable")),
        };
        fill(&mut conf.trace, trace)?;
        super::main::note_use(args, !matches!(trace, Trace::Off))
    }
}

/// `omnitrace_context extract|inject|propagate|ignore`
pub(super) struct Context;

impl Directive for Context {
    const NAME: &'static CStr = c"omnitrace_context";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let propagation = |extract, inject| Propagation { extract, inject };
        let value = args.choice(
            1,
            &[
                ("extract", propagation(true, false)),
                ("inject", propagation(false, true)),
                ("propagate", propagation(true, true)),
                ("ignore", propagation(false, false)),
            ],
        )?;
        fill(&mut conf.context, value)
    }
}

/// `omnitrace_span_name NAME`
pub(super) struct SpanName;

impl Directive for SpanName {
    const NAME: &'static CStr = c"omnitrace_span_name";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        args.word(1)?;
        fill(&mut conf.span_name, compile(args, 1)?)
    }
}

/// `omnitrace_span_attr NAME VALUE`
pub(super) struct SpanAttr;

impl Directive for SpanAttr {
    const NAME: &'static CStr = c"omnitrace_span_attr";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let name = args.word(1)?;
        if conf.span_attrs.iter().any(|(known, _)| known == name) {
            return Err(args.refuse(1, "there is such an attribute already"));
        }
        conf.span_attrs.push((name.to_owned(), compile(args, 2)?));
        Ok(())
    }
}

/// `omnitrace_request_id on|off`
pub(super) struct RequestId;

impl Directive for RequestId {
    const NAME: &'static CStr = c"omnitrace_request_id";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        fill(
            &mut conf.request_id,
            args.choice(1, &[("on", true), ("off", false)])?,
        )
    }
}

/// `omnitrace_tokens auto|on|off`
pub(super) struct Tokens;

impl Directive for Tokens {
    const NAME: &'static CStr = c"omnitrace_tokens";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let value = args.choice(
            1,
            &[
                ("auto", TokenSearch::Auto),
                ("on", TokenSearch::On),
                ("off", TokenSearch::Off),
            ],
        )?;
        fill(&mut conf.tokens, value)
    }
}

/// `omnitrace_upstream_role prefill|decode|off`
pub(super) struct UpstreamRole;

impl Directive for UpstreamRole {
    const NAME: &'static CStr = c"omnitrace_upstream_role";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let value = args.choice(
            1,
            &[
                ("prefill", Try::Prefill),
                ("decode", Try::Decode),
                ("off", Try::Plain),
            ],
        )?;
        fill(&mut conf.upstream_role, value)
    }
}

/// Compiles an argument with variables.
fn compile(args: &Args<'_>, index: usize) -> Result<ComplexValue, ConfError> {
    let cf = args.cf();
    let mut text: ngx_str_t = args.raw(index);
    // SAFETY: nginx's state of the directive at hand, with the cycle's pool.
    let value = unsafe { ngx_palloc((*cf).pool, size_of::<ngx_http_complex_value_t>()) };
    if value.is_null() {
        return Err(ConfError::Logged);
    }
    // SAFETY: all zero is the structure's empty state.
    let mut compile: ngx_http_compile_complex_value_t = unsafe { std::mem::zeroed() };
    compile.cf = cf;
    compile.value = ptr::from_mut(&mut text);
    compile.complex_value = value.cast();
    // SAFETY: all of it lives through the call; what nginx keeps of it is in the pool.
    let rc = unsafe { ngx_http_compile_complex_value(&mut compile) };
    if rc == Status::NGX_OK.0 {
        Ok(value.cast())
    } else {
        Err(ConfError::Logged)
    }
}
