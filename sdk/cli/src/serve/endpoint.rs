//! The addresses that `serve` listens on.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A bound socket and the option it came from.
#[derive(Debug)]
pub(super) struct Endpoint {
    option: &'static str,
    /// Where it really listens: the port is never 0.
    pub(super) address: SocketAddr,
    pub(super) listener: TcpListener,
}

/// An address that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for --{option}: {source}; {}", cure(.option, *.address, .source))]
pub(crate) struct ListenError {
    option: &'static str,
    address: SocketAddr,
    source: io::Error,
}

fn cure(option: &str, address: SocketAddr, source: &io::Error) -> String {
    match source.kind() {
        ErrorKind::AddrInUse => format!(
            "stop the program that has the port, or take any free port with --{option} {}",
            SocketAddr::new(address.ip(), 0)
        ),
        ErrorKind::PermissionDenied => format!("give --{option} a port above 1023"),
        _ => format!("give --{option} an address of this machine"),
    }
}

/// Reads the value of an endpoint option: a host name or IP address, and a port.
pub(super) fn parse(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .map_err(|error| error.to_string())
        .and_then(|mut addresses| addresses.next().ok_or_else(|| "no such host".to_owned()))
        .map_err(|reason| format!("{reason}; give HOST:PORT, such as 127.0.0.1:4317"))
}

impl Endpoint {
    /// Listens on `address`, the value of `option`.
    pub(super) fn bind(option: &'static str, address: SocketAddr) -> Result<Self, ListenError> {
        listen(address)
            .and_then(|listener| {
                Ok(Self {
                    option,
                    address: listener.local_addr()?,
                    listener,
                })
            })
            .map_err(|source| ListenError {
                option,
                address,
                source,
            })
    }

    /// What to tell a user who opens this endpoint to other machines.
    pub(super) fn warning(&self) -> Option<String> {
        (!self.address.ip().is_loopback()).then(|| {
            format!(
                "--{} {} can be reached from other machines, and there is no authentication",
                self.option, self.address
            )
        })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for the last run's connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_an_error_that_names_the_option_and_the_cure() {
        let local = parse("127.0.0.1:0").unwrap();
        let first = Endpoint::bind("ui-endpoint", local).unwrap();
        let error = Endpoint::bind("otlp-grpc-endpoint", first.address).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {} for --otlp-grpc-endpoint: Address already in use \
                 (os error 98); stop the program that has the port, or take any free port \
                 with --otlp-grpc-endpoint 127.0.0.1:0",
                first.address
            )
        );
    }

    #[tokio::test]
    async fn only_an_address_beyond_this_machine_gets_a_warning() {
        let warning = |address| {
            let endpoint = Endpoint::bind("ui-endpoint", parse(address).unwrap()).unwrap();
            let port = endpoint.address.port().to_string();
            endpoint.warning().map(|text| text.replace(&port, "PORT"))
        };
        assert_eq!(warning("localhost:0"), None);
        assert_eq!(
            warning("0.0.0.0:0").unwrap(),
            "--ui-endpoint 0.0.0.0:PORT can be reached from other machines, \
             and there is no authentication"
        );
    }

    #[test]
    fn an_endpoint_without_a_port_is_refused_with_an_example() {
        assert_eq!(
            parse("127.0.0.1").unwrap_err(),
            "invalid socket address; give HOST:PORT, such as 127.0.0.1:4317"
        );
    }
}
