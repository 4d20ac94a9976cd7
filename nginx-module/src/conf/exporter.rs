//! `omnitrace_exporter { … }`: where spans go, and how.

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nginx_sys::{
    NGX_HTTP_MAIN_CONF_OFFSET, ngx_command_t, ngx_conf_full_name, ngx_conf_parse, ngx_conf_t,
    ngx_parse_size, ngx_parse_time,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK, Status};
use omnitrace::config::{
    self, Config, Protocol, Tls, TlsError, check_endpoint, is_reserved_header,
};

use super::main::MainConfig;
use super::{Args, ConfError, Directive, answer, fill};
use crate::guard::guard;

/// Settings of the block; None is what the environment says, or the default.
#[derive(Debug, Default)]
pub(crate) struct ExporterConfig {
    endpoint: Option<String>,
    /// `unix:PATH`: the endpoint then names nothing but the host in the requests.
    socket: Option<PathBuf>,
    protocol: Option<Protocol>,
    headers: Vec<(String, String)>,
    tls: Tls,
    trusted_certificate: Option<PathBuf>,
    certificate: Option<PathBuf>,
    certificate_key: Option<PathBuf>,
    gzip: Option<bool>,
    timeout: Option<Duration>,
    interval: Option<Duration>,
    retry_timeout: Option<Duration>,
    batch_size: Option<usize>,
    queue_size: Option<usize>,
}

/// A directive inside the block: its name, how many arguments it has, and what it does.
type Inner = (
    &'static str,
    usize,
    fn(&mut ExporterConfig, &Args<'_>) -> Result<(), ConfError>,
);

const INNER: [Inner; 12] = [
    ("endpoint", 1, |conf, args| {
        let endpoint = args.word(1)?;
        if let Some(path) = endpoint.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(args.refuse(1, "a socket's path must begin with \"/\""));
            }
            conf.socket = Some(path.into());
            return fill(&mut conf.endpoint, "http://localhost".to_owned());
        }
        check_endpoint(endpoint).map_err(|reason| args.refuse(1, &format!("it {reason}")))?;
        fill(&mut conf.endpoint, endpoint.to_owned())
    }),
    ("protocol", 1, |conf, args| {
        let value = args.choice(
            1,
            &[
                ("http/protobuf", Protocol::HttpProtobuf),
                ("http/json", Protocol::HttpJson),
                ("grpc", Protocol::Grpc),
            ],
        )?;
        fill(&mut conf.protocol, value)
    }),
    ("header", 2, header),
    ("trusted_certificate", 1, |conf, args| {
        let path = file(args)?;
        conf.tls
            .trust(&path)
            .map_err(|error| args.refuse(1, &format!("it {error}")))?;
        fill(&mut conf.trusted_certificate, path)
    }),
    ("certificate", 1, |conf, args| {
        fill(&mut conf.certificate, file(args)?)
    }),
    ("certificate_key", 1, |conf, args| {
        fill(&mut conf.certificate_key, file(args)?)
    }),
    ("compression", 1, |conf, args| {
        fill(
            &mut conf.gzip,
            args.choice(1, &[("gzip", true), ("none", false)])?,
        )
    }),
    ("timeout", 1, |conf, args| {
        fill(&mut conf.timeout, time(args)?)
    }),
    ("interval", 1, |conf, args| {
        fill(&mut conf.interval, time(args)?)
    }),
    ("retry_timeout", 1, |conf, args| {
        fill(&mut conf.retry_timeout, time(args)?)
    }),
    ("batch_size", 1, |conf, args| {
        let number = args.text(1)?.parse().ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| args.refuse(1, "it must be a number above 0"))?;
        fill(&mut conf.batch_size, number)
    }),
    ("queue_size", 1, |conf, args| {
        // SAFETY: reads the argument, no more.
        let size = unsafe { ngx_parse_size(&mut args.raw(1)) };
        let size = usize::try_from(size).ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| args.refuse(1, "it must be a size such as 16m"))?;
        fill(&mut conf.queue_size, size)
    }),
];

fn header(conf: &mut ExporterConfig, args: &Args<'_>) -> Result<(), ConfError> {
    // gRPC wants names in lower case, HTTP does not mind.
    let name = args.word(1)?.to_ascii_lowercase();
    let value = args.text(2)?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.bytes().all(token) {
        return Err(args.refuse(1, "it must be a header name"));
    }
    if !value
        .bytes()
        .all(|b| b == b'\t' || (b' '..=b'~').contains(&b))
    {
        return Err(args.refuse(2, "it must be printable ASCII"));
    }
    if is_reserved_header(&name) {
        return Err(args.refuse(1, "it is for the exporter to say"));
    }
    if conf.headers.iter().any(|(known, _)| *known == name) {
        return Err(args.refuse(1, "there is such a header already"));
    }
    conf.headers.push((name, value.to_owned()));
    Ok(())
}

/// A file, taken from the directory of the configuration if it is relative, like nginx's own
/// certificates.
fn file(args: &Args<'_>) -> Result<PathBuf, ConfError> {
    args.word(1)?;
    let mut name = args.raw(1);
    // SAFETY: nginx's state of the directive at hand.
    let rc = unsafe { ngx_conf_full_name((*args.cf()).cycle, &mut name, 1) };
    if rc != Status::NGX_OK.0 {
        return Err(ConfError::Logged);
    }
    Ok(name.to_string().into())
}

/// A time such as `500ms`, `5s` or `1m`, above 0.
fn time(args: &Args<'_>) -> Result<Duration, ConfError> {
    // SAFETY: reads the argument, no more.
    let millis = unsafe { ngx_parse_time(&mut args.raw(1), 0) };
    match u64::try_from(millis) {
        Ok(millis) if millis > 0 => Ok(Duration::from_millis(millis)),
        _ => Err(args.refuse(1, "it must be a time such as 5s or 500ms")),
    }
}

impl ExporterConfig {
    /// Reads the certificate and its key when the block is complete: the user of the workers may
    /// not be allowed to.
    fn load_certificate(&mut self) -> Result<(), ConfError> {
        let refuse = |name: &str, path: &Path, reason: String| {
            let path = path.display();
            ConfError::Reason(format!(
                "invalid value \"{path}\" in \"{name}\" directive, it {reason}"
            ))
        };
        let (certificate, key) = match (&self.certificate, &self.certificate_key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => return Ok(()),
            (Some(path), None) => {
                let reason = "needs a \"certificate_key\" too".to_owned();
                return Err(refuse("certificate", path, reason));
            }
            (None, Some(path)) => {
                let reason = "needs a \"certificate\" too".to_owned();
                return Err(refuse("certificate_key", path, reason));
            }
        };
        self.tls
            .identify(certificate, key)
            .map_err(|error| match error {
                TlsError::Key(_) => refuse("certificate_key", key, error.to_string()),
                _ => refuse("certificate", certificate, error.to_string()),
            })
    }

    /// Whether the block says what this variable would say of certificates.
    fn outweighs(&self, variable: &str) -> bool {
        let name = variable
            .strip_prefix("OTEL_EXPORTER_OTLP_")
            .map(|name| name.strip_prefix("TRACES_").unwrap_or(name));
        match name {
            Some("CERTIFICATE") => self.trusted_certificate.is_some(),
            Some("CLIENT_CERTIFICATE" | "CLIENT_KEY") => self.certificate.is_some(),
            _ => false,
        }
    }

    /// What the environment says, changed by what the block says of it.
    pub(crate) fn configure(&self) -> (Config, Vec<String>) {
        // The endpoint's path depends on the protocol, so the core takes both together, as the
        // variables that would have said the same.
        let protocol = self.protocol.map(Protocol::name);
        let has_path = self.endpoint.as_deref().is_some_and(has_path);
        let (mut config, mut warnings) = Config::from_vars(|name| match (name, &self.endpoint) {
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", _) if protocol.is_some() => {
                protocol.map(str::to_owned)
            }
            ("OTEL_TRACES_EXPORTER", Some(_)) => None,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", Some(url)) => has_path.then(|| url.clone()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", Some(url)) => Some(url.clone()),
            _ if self.outweighs(name) => None,
            _ => config::variable(name),
        });
        if let Some(exporter) = &mut config.exporter {
            exporter.socket.clone_from(&self.socket);
            if let Some(metrics) = &mut config.metrics {
                metrics.exporter.socket.clone_from(&self.socket);
            }
            for (name, value) in &self.headers {
                exporter
                    .headers
                    .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
                exporter.headers.push((name.clone(), value.clone()));
            }
            exporter.tls.override_with(&self.tls);
            if !self.tls.is_default() && !exporter.is_encrypted() {
                warnings.push(format!(
                    "the certificates of \"omnitrace_exporter\" have no effect on {}: the connection \
                     is not encrypted",
                    exporter.endpoint
                ));
            }
            exporter.gzip = self.gzip.unwrap_or(exporter.gzip);
            exporter.timeout = self.timeout.unwrap_or(exporter.timeout);
        }
        config.schedule_delay = self.interval.unwrap_or(config.schedule_delay);
        config.export_timeout = self.retry_timeout.unwrap_or(config.export_timeout);
        config.max_batch = self.batch_size.unwrap_or(config.max_batch);
        config.max_waiting_bytes = self.queue_size.unwrap_or(config.max_waiting_bytes);
        (config, warnings)
    }
}

/// Whether a URL says more than the host: then it is the full address, not the base of it.
fn has_path(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    host.split_once('/')
        .is_some_and(|(_, path)| !path.is_empty())
}

/// `omnitrace_exporter { … }`
pub(super) struct Exporter;

impl Directive for Exporter {
    const NAME: &'static CStr = c"omnitrace_exporter";
    const OFFSET: usize = NGX_HTTP_MAIN_CONF_OFFSET;
    type Conf = MainConfig;

    fn set(conf: &mut MainConfig, args: &Args<'_>) -> Result<(), ConfError> {
        fill(&mut conf.exporter, ExporterConfig::default())?;
        // SAFETY: nginx's state of the directive at hand; a copy with our own handler reads the
        // block, as nginx's own modules do it.
        let rv = unsafe {
            let mut block: ngx_conf_t = *args.cf();
            block.handler = Some(inner);
            block.handler_conf = (&raw mut conf.exporter).cast();
            ngx_conf_parse(&mut block, std::ptr::null_mut())
        };
        match &mut conf.exporter {
            Some(exporter) if rv == NGX_CONF_OK => exporter.load_certificate(),
            _ => Err(ConfError::Logged),
        }
    }
}

unsafe extern "C" fn inner(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    guard("a directive", NGX_CONF_ERROR, || {
        // SAFETY: nginx passes its state and what `Exporter` has put there.
        let (args, conf) = unsafe { (Args::new(cf), &mut *conf.cast::<Option<ExporterConfig>>()) };
        let result = match (args.text(0), conf) {
            (Ok(name), Some(conf)) => set_inner(conf, name, &args),
            _ => Err(ConfError::Logged),
        };
        // Only nginx's own loop over directives knows what to do with a phrase.
        match result {
            Err(ConfError::Duplicate) => {
                let reason = format!("\"{}\" directive is duplicate", args.raw(0));
                answer(cf, Err(ConfError::Reason(reason)))
            }
            result => answer(cf, result),
        }
    })
}

fn set_inner(conf: &mut ExporterConfig, name: &str, args: &Args<'_>) -> Result<(), ConfError> {
    let Some((_, count, set)) = INNER.iter().find(|(known, ..)| *known == name) else {
        let reason = format!("unknown directive \"{name}\" in \"omnitrace_exporter\"");
        return Err(ConfError::Reason(reason));
    };
    if args.count() != *count {
        let reason = format!("invalid number of arguments in \"{name}\" directive");
        return Err(ConfError::Reason(reason));
    }
    set(conf, args)
}
