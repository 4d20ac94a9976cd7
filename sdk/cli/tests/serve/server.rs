//! The running binary, and just enough HTTP to talk to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// A running `omnitrace serve`, ended with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) grpc: String,
    pub(crate) http: String,
    pub(crate) ui: String,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_omnitrace"))
            .arg("serve")
            .args(["--otlp-grpc-endpoint", "127.0.0.1:0"])
            .args(["--otlp-http-endpoint", "127.0.0.1:0"])
            .args(["--ui-endpoint", "127.0.0.1:0"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        let mut address = |label: &str| {
            let line = lines.next().unwrap().unwrap();
            line.strip_prefix(label).unwrap().to_owned()
        };
        Self {
            grpc: address("otlp-grpc "),
            http: address("otlp-http "),
            ui: address("jaeger-ui http://"),
            child,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        Answer::to(&self.ui, "GET", path, &[], b"")
    }

    pub(crate) fn post(&self, content_type: &str, body: &[u8]) -> Answer {
        let headers = [("content-type", content_type)];
        Answer::to(&self.http, "POST", "/v1/traces", &headers, body)
    }

    /// The answer's `data`; the envelope around it is Jaeger's.
    pub(crate) fn query(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (200, "application/json")
        );
        let mut envelope: Value = serde_json::from_slice(&answer.body).unwrap();
        let data = envelope["data"].take();
        envelope.as_object_mut().unwrap().remove("total");
        assert_eq!(
            envelope,
            json!({"data": null, "limit": 0, "offset": 0, "errors": null})
        );
        data
    }

    pub(crate) fn stats(&self) -> Value {
        serde_json::from_slice(&self.get("/stats").body).unwrap()
    }

    /// Ends the server as a service manager does; its exit code and stderr.
    pub(crate) fn terminate(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        (status.code(), stderr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer to one HTTP request, which had its connection to itself.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn to(
        address: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!(
            "connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let content_type = head
            .lines()
            .find_map(|line| line.strip_prefix("content-type: "));
        Self {
            status: head[9..12].parse().unwrap(),
            content_type: content_type.unwrap_or_default().to_owned(),
            body: answer[end + 4..].to_vec(),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}
