"""What `nginx -t` says to wrong directives."""

from __future__ import annotations

import re

import pytest
from nginx_server import OTHER_NGINX, Nginx

MISSING = "cannot be read (No such file or directory (os error 2))"
TIME = "it must be a time such as 5s or 500ms"


@pytest.mark.parametrize(
    ("directive", "value", "reason"),
    [
        ("omnitrace", "maybe", 'it must be "on", "off" or a variable'),
        (
            "omnitrace_context",
            "both",
            'it must be "extract", "inject", "propagate" or "ignore"',
        ),
        ("omnitrace_span_name", "", "it must not be empty"),
        ("omnitrace_request_id", "yes", 'it must be "on" or "off"'),
        ("omnitrace_tokens", "some", 'it must be "auto", "on" or "off"'),
        ("omnitrace_upstream_role", "both", 'it must be "prefill", "decode" or "off"'),
        ("omnitrace_service_name", "\\xff", "it must be UTF-8 text"),
        ("omnitrace_legacy_log", "sometimes", 'it must be "off", "fallback" or "always"'),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_right(
    directive: str, value: str, reason: str, nginx: Nginx
) -> None:
    written = value.replace("\\xff", "\udcff")
    nginx.configure(f'{directive} "{written}";')
    expected = f'[emerg] invalid value "{value}" in "{directive}" directive, {reason} in <dir>'
    assert nginx.test().startswith(expected)


@pytest.mark.parametrize(
    ("directive", "value", "reason"),
    [
        (
            "endpoint",
            "localhost:4317",
            "it does not begin with http:// or https:// and a host",
        ),
        ("endpoint", "nonsense", "it is not a URL (relative URL without a base)"),
        ("protocol", "thrift", 'it must be "http/protobuf", "http/json" or "grpc"'),
        ("compression", "zip", 'it must be "gzip" or "none"'),
        ("timeout", "soon", TIME),
        ("interval", "0", TIME),
        ("batch_size", "0", "it must be a number above 0"),
        ("trusted_certificate", "none.pem", f"it {MISSING}"),
        ("trusted_certificate", "nginx.conf", "it has no certificate in PEM form in it"),
        ("trusted_certificate", '""', "it must not be empty"),
        ("header", "Content-Type x", "it is for the exporter to say"),
        ("queue_size", "big", "it must be a size such as 16m"),
    ],
)
def test_so_is_one_of_the_exporter(directive: str, value: str, reason: str, nginx: Nginx) -> None:
    nginx.configure(f"omnitrace_exporter {{ {directive} {value}; }}")
    value = value.strip('"').split(" ")[0]
    expected = f'[emerg] invalid value "{value}" in "{directive}" directive, {reason} in <dir>'
    assert nginx.test().startswith(expected)


@pytest.mark.parametrize(
    ("directives", "message"),
    [
        ("omnitrace;", 'invalid number of arguments in "omnitrace" directive'),
        ("omnitrace $nothing;", 'unknown "nothing" variable'),
        (
            "omnitrace_span_attr k 1; omnitrace_span_attr k 2;",
            (
                'invalid value "k" in "omnitrace_span_attr" directive, '
                "there is such an attribute already"
            ),
        ),
        (
            "omnitrace_resource_attr k 1; omnitrace_resource_attr k 2;",
            (
                'invalid value "k" in "omnitrace_resource_attr" directive, '
                "there is such an attribute already"
            ),
        ),
        (
            "omnitrace_legacy_log off logs;",
            (
                'invalid value "logs" in "omnitrace_legacy_log" directive, '
                "a log that is off has no path"
            ),
        ),
        (
            "omnitrace_legacy_log always nginx.conf;",
            'invalid value "nginx.conf" in "omnitrace_legacy_log" directive, it is not a directory',
        ),
        (
            "omnitrace_legacy_log always not/there;",
            'mkdir() "<dir>/not/there" failed (2: No such file or directory)',
        ),
        (
            "omnitrace_exporter { endpint x; }",
            'unknown directive "endpint" in "omnitrace_exporter"',
        ),
        (
            "omnitrace_exporter { endpoint; }",
            'invalid number of arguments in "endpoint" directive',
        ),
        (
            "omnitrace_exporter { header a:b c; }",
            'invalid value "a:b" in "header" directive, it must be a header name',
        ),
        (
            "omnitrace_exporter { header a 1; header A 2; }",
            'invalid value "A" in "header" directive, there is such a header already',
        ),
    ],
)
def test_every_other_mistake_is_named_too(directives: str, message: str, nginx: Nginx) -> None:
    nginx.configure(directives)
    assert nginx.test().startswith(f"[emerg] {message}")


@pytest.mark.parametrize(
    "directive",
    [
        "omnitrace on;",
        "omnitrace_context extract;",
        "omnitrace_span_name x;",
        "omnitrace_request_id on;",
        "omnitrace_tokens on;",
        "omnitrace_upstream_role decode;",
        "omnitrace_service_name x;",
        "omnitrace_legacy_log off;",
        "omnitrace_exporter { }",
    ],
)
def test_a_directive_may_stand_once_in_a_block(directive: str, nginx: Nginx) -> None:
    nginx.configure(directive * 2)
    name = directive.split()[0]
    assert nginx.test().startswith(f'[emerg] "{name}" directive is duplicate in <dir>')


def test_a_directive_of_the_exporter_may_stand_once(nginx: Nginx) -> None:
    nginx.configure("omnitrace_exporter { endpoint http://a; endpoint http://b; }")
    assert nginx.test().startswith('[emerg] "endpoint" directive is duplicate in <dir>')


@pytest.mark.parametrize(
    "directive",
    [
        "omnitrace_exporter { }",
        "omnitrace_service_name x;",
        "omnitrace_resource_attr k v;",
        "omnitrace_legacy_log off;",
    ],
)
def test_a_directive_of_the_http_block_is_refused_elsewhere(directive: str, nginx: Nginx) -> None:
    nginx.configure(f"server {{ {directive} }}")
    name = directive.split()[0]
    assert nginx.test().startswith(f'[emerg] "{name}" directive is not allowed here')


def test_another_nginx_is_told_to_get_a_module_of_its_own(nginx: Nginx) -> None:
    if not OTHER_NGINX:
        pytest.skip("there is no second nginx: make vendored")
    nginx.configure("omnitrace on;")
    said = nginx.test(program=OTHER_NGINX).splitlines()
    version = r"\d+\.\d+\.\d+"
    assert re.fullmatch(
        rf"\[emerg\] omnitrace: this module is built for nginx {version} and this is nginx "
        rf'{version}: build it with "make module NGINX=/path/to/its/source"',
        said[0],
    )


def test_the_environment_is_read_with_the_configuration(nginx: Nginx) -> None:
    nginx.configure("omnitrace on;")
    environment = {
        "OTEL_BSP_SCHEDULE_DELAY": "soon",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "x:1",
    }
    lines = nginx.test(environment).splitlines()
    warnings = [line for line in lines if line.startswith("[warn] omnitrace: ")]
    assert [line.split(" in <dir>")[0] for line in warnings] == [
        (
            '[warn] omnitrace: OTEL_EXPORTER_OTLP_ENDPOINT="x:1" does not begin with http:// or '
            "https:// and a host: nothing is exported, spans go to the legacy log"
        ),
        '[warn] omnitrace: OTEL_BSP_SCHEDULE_DELAY="soon" is not a whole number: 5000',
    ]


def test_the_environment_may_ask_for_silence(nginx: Nginx) -> None:
    nginx.configure("omnitrace on;")
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "soon", "OTEL_LOG_LEVEL": "error"}
    assert nginx.test(environment) == ""


def test_a_configuration_that_traces_nothing_says_nothing(nginx: Nginx) -> None:
    nginx.configure("omnitrace off;")
    assert nginx.test({"OTEL_BSP_SCHEDULE_DELAY": "soon"}) == ""
