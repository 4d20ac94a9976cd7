//! Encrypted ways to the Collector.

use std::fs;

use super::*;
use crate::authority::Authority;
use crate::receiver::Receiver;

/// Sends one span to `endpoint` with these files.
fn sent(protocol: &str, endpoint: &str, files: &[(&str, &str)]) -> Result<Taken, ExportError> {
    let own = [("PROTOCOL", protocol), ("TRACES_ENDPOINT", endpoint)];
    send(&exporter(&[&own, files].concat()))
}

#[test]
fn a_server_of_the_trusted_authority_gets_the_spans_by_every_protocol() {
    let authority = Authority::new();
    let receiver = Receiver::with_tls(authority.server("127.0.0.1", false));
    for protocol in PROTOCOLS {
        let endpoint = receiver.endpoint(protocol);
        let trusted = [("CERTIFICATE", &*authority.file)];
        assert_eq!(
            sent(protocol, &endpoint, &trusted),
            all_taken(),
            "{protocol}"
        );
    }
    assert_eq!(receiver.received().len(), PROTOCOLS.len());
}

#[test]
fn a_grpc_endpoint_without_a_scheme_is_encrypted() {
    let authority = Authority::new();
    let receiver = Receiver::with_tls(authority.server("127.0.0.1", false));
    let endpoint = format!("127.0.0.1:{}", receiver.port());
    let trusted = [("CERTIFICATE", &*authority.file)];
    assert_eq!(sent("grpc", &endpoint, &trusted), all_taken());
    let plain = Receiver::new([]);
    let endpoint = format!("127.0.0.1:{}", plain.port());
    assert_eq!(
        sent("grpc", &endpoint, &[("INSECURE", "true")]),
        all_taken()
    );
}

#[test]
fn a_server_of_another_authority_gets_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let receiver = Receiver::with_tls(authority.server("127.0.0.1", false));
    for protocol in PROTOCOLS {
        let endpoint = receiver.endpoint(protocol);
        let said = reason(sent(protocol, &endpoint, &[("CERTIFICATE", &other.file)]));
        assert!(
            said.contains("invalid peer certificate: UnknownIssuer"),
            "{said}"
        );
    }
    assert_eq!(receiver.received().len(), 0);
}

#[test]
fn a_server_with_another_hosts_certificate_gets_nothing() {
    let authority = Authority::new();
    let receiver = Receiver::with_tls(authority.server("collector.example", false));
    for protocol in PROTOCOLS {
        let endpoint = receiver.endpoint(protocol);
        let said = reason(sent(
            protocol,
            &endpoint,
            &[("CERTIFICATE", &authority.file)],
        ));
        assert!(said.contains("certificate not valid for name"), "{said}");
    }
    assert_eq!(receiver.received().len(), 0);
}

#[test]
fn a_server_that_asks_for_it_is_shown_our_certificate() {
    let authority = Authority::new();
    let receiver = Receiver::with_tls(authority.server("127.0.0.1", true));
    let own = authority.issue("client.example");
    let elsewhere = Authority::new();
    let stranger = elsewhere.issue("client.example");
    for protocol in PROTOCOLS {
        let endpoint = receiver.endpoint(protocol);
        let trusted = ("CERTIFICATE", &*authority.file);
        let shown = [
            trusted,
            ("CLIENT_CERTIFICATE", &own.certificate),
            ("CLIENT_KEY", &own.key),
        ];
        assert_eq!(sent(protocol, &endpoint, &shown), all_taken(), "{protocol}");
        let strange = [
            trusted,
            ("CLIENT_CERTIFICATE", &stranger.certificate),
            ("CLIENT_KEY", &stranger.key),
        ];
        assert!(!reason(sent(protocol, &endpoint, &strange)).is_empty());
        let said = reason(sent(protocol, &endpoint, &[trusted]));
        let told = [
            "CertificateRequired",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        ];
        assert!(told.iter().any(|text| said.contains(text)), "{said}");
    }
    assert_eq!(receiver.received().len(), PROTOCOLS.len());
}

#[test]
fn an_encrypted_server_is_not_spoken_to_in_plain_nor_the_other_way_round() {
    let authority = Authority::new();
    let encrypted = Receiver::with_tls(authority.server("127.0.0.1", false));
    let plain = Receiver::new([]);
    for protocol in PROTOCOLS {
        let swapped = encrypted.endpoint(protocol).replace("https", "http");
        assert!(!reason(sent(protocol, &swapped, &[])).is_empty());
        let swapped = plain.endpoint(protocol).replace("http", "https");
        let trusted = [("CERTIFICATE", &*authority.file)];
        assert!(!reason(sent(protocol, &swapped, &trusted)).is_empty());
    }
    assert_eq!((encrypted.received().len(), plain.received().len()), (0, 0));
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_variable_and_the_cure() {
    let authority = Authority::new();
    let (own, other) = (
        authority.issue("own.example"),
        authority.issue("other.example"),
    );
    let empty = authority.write("empty.pem", "");
    let broken = authority.write(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let sealed = authority.write(
        "sealed.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let missing = format!("{empty}.not-there");
    let (trusted, certificate, key) = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY");
    let trust = "it must name a PEM file of trusted certificates";
    let show = "it must name a PEM file of our certificate";
    let keep = "it must name a PEM file of our certificate's key";
    let none = "has no certificate in PEM form in it";
    let no_key = "has no private key in PEM form in it (one with a pass phrase cannot be used)";
    let gone = "cannot be read (No such file or directory (os error 2))";
    let good_key = (key, &own.key);
    let good = (certificate, &own.certificate);
    for (files, wrong, what) in [
        (vec![(trusted, &missing)], 0, format!("{gone}; {trust}")),
        (vec![(trusted, &empty)], 0, format!("{none}; {trust}")),
        (vec![(trusted, &own.key)], 0, format!("{none}; {trust}")),
        (
            vec![(trusted, &broken)],
            0,
            format!(
                "has a certificate in it that cannot be used (invalid peer certificate: \
                 BadEncoding); {trust}"
            ),
        ),
        (
            vec![(certificate, &missing), good_key],
            0,
            format!("{gone}; {show}"),
        ),
        (
            vec![(certificate, &empty), good_key],
            0,
            format!("{none}; {show}"),
        ),
        (vec![good, (key, &missing)], 1, format!("{gone}; {keep}")),
        (
            vec![good, (key, &own.certificate)],
            1,
            format!("{no_key}; {keep}"),
        ),
        (vec![good, (key, &sealed)], 1, format!("{no_key}; {keep}")),
        (
            vec![good, (key, &other.key)],
            1,
            format!("is not the key of the client certificate; {keep}"),
        ),
        (
            vec![good],
            0,
            "needs the certificate's key in OTEL_EXPORTER_OTLP_CLIENT_KEY too".to_owned(),
        ),
        (
            vec![good_key],
            0,
            "needs the key's certificate in OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE too".to_owned(),
        ),
    ] {
        let mut vars = vec![("ENDPOINT", "https://collector.example")];
        vars.extend(files.iter().map(|(name, file)| (*name, file.as_str())));
        let (config, warnings) = settings(&vars);
        let (name, file) = files[wrong];
        assert_eq!(
            warnings,
            [format!(
                "OTEL_EXPORTER_OTLP_{name}=\"{file}\" {what}: nothing is exported, spans go to \
                 the legacy log"
            )]
        );
        assert_eq!(config.exporter, None);
    }
}

#[test]
fn files_are_read_once_and_a_key_never_shows() {
    let authority = Authority::new();
    let receiver = Receiver::with_tls(authority.server("127.0.0.1", true));
    let own = authority.issue("client.example");
    let config = exporter(&[
        ("ENDPOINT", &receiver.url()),
        ("CERTIFICATE", &authority.file),
        ("CLIENT_CERTIFICATE", &own.certificate),
        ("CLIENT_KEY", &own.key),
    ]);
    let key = fs::read_to_string(&own.key).unwrap();
    for file in [&authority.file, &own.certificate, &own.key] {
        fs::remove_file(file).unwrap();
    }
    assert_eq!(send(&config), all_taken());
    let shown = format!("{config:?}");
    assert!(
        shown.contains("tls: Tls { trusted: Some(1), identity: true }"),
        "{shown}"
    );
    assert!(!shown.contains(key.lines().nth(1).unwrap()));
}

#[test]
fn certificates_for_a_plain_endpoint_are_said_to_have_no_effect() {
    let vars = [
        ("ENDPOINT", "http://collector.example"),
        ("CERTIFICATE", "/nowhere/authority.pem"),
    ];
    let (config, warnings) = settings(&vars);
    assert_eq!(
        warnings,
        [
            "OTEL_EXPORTER_OTLP_CERTIFICATE=\"/nowhere/authority.pem\" has no effect on \
          http://collector.example/v1/traces: the connection is not encrypted"
        ]
    );
    assert!(config.exporter.is_some());
}
