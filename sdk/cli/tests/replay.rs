//! `omnitrace replay` to a real receiver.

#![allow(clippy::unwrap_used)] // a test may

mod logs;
#[path = "serve/server.rs"]
#[allow(dead_code)] // another test uses the rest
mod server;

use std::fs;

use logs::{BEGIN, folder, omnitrace, request};
use server::Server;

#[test]
fn a_replay_goes_on_where_an_earlier_one_has_ended() {
    let mut lines = request("r1", BEGIN);
    lines.extend(request("r2", BEGIN + 1_000_000));
    let folder = folder("resume", &lines);
    let server = Server::start(&[]);
    let endpoint = format!("http://{}", server.http);
    let (logs, state) = (folder.join("logs"), folder.join("state"));
    let replay = || {
        let output = omnitrace(&[
            "replay",
            logs.to_str().unwrap(),
            "--endpoint",
            &endpoint,
            "--state",
            state.to_str().unwrap(),
            "--rate",
            "100000",
        ]);
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let count = || {
        server
            .query("/api/traces?service=omni-proxy")
            .as_array()
            .unwrap()
            .len()
    };
    let said = replay();
    assert!(
        said.contains(" spans sent to ") && !said.contains("earlier replay"),
        "{said}"
    );
    assert_eq!(count(), 2);
    let said = replay();
    assert!(
        said.contains("2 traces left out that an earlier replay has sent"),
        "{said}"
    );
    assert!(said.contains("0 spans sent"), "{said}");
    // What has come since is sent.
    let more = request("r3", BEGIN + 2_000_000);
    let text: String = more.iter().map(logs::Line::text).collect();
    fs::write(logs.join("later.log"), text).unwrap();
    let said = replay();
    assert!(
        said.contains("2 traces left out") && !said.contains("0 spans sent"),
        "{said}"
    );
    assert_eq!(count(), 3);
}
