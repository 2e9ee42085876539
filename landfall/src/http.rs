//! Numbers and health over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for the kubelet.
//!
//! One future, which ends only when it is dropped. Whoever can reach the port may read: there is nothing secret in it.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use controller::Metrics;
use tokio::net::TcpListener;

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// Nowhere.
    Off,
    /// There.
    On(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::On).map_err(|_| "expected ADDRESS:PORT, such as 127.0.0.1:9646, or off".to_owned())
    }
}

/// What there is to tell about a process of Landfall.
pub(crate) trait Numbers: Clone + Send + Sync + 'static {
    /// All numbers, in the text format of OpenMetrics 1.0.
    fn text(&self) -> Result<String, fmt::Error>;

    /// Why it is not ready, if it isn't.
    fn unready(&self) -> Option<&'static str>;
}

impl Numbers for agent::Metrics {
    fn text(&self) -> Result<String, fmt::Error> {
        self.text()
    }

    fn unready(&self) -> Option<&'static str> {
        self.unready()
    }
}

impl Numbers for Metrics {
    fn text(&self) -> Result<String, fmt::Error> {
        self.text()
    }

    fn unready(&self) -> Option<&'static str> {
        (!self.is_ready()).then_some("the API server has not told yet what there is")
    }
}

/// Answers until it is dropped. Where it can't listen, it says so: all else goes on.
pub(crate) async fn serve(address: Address, metrics: impl Numbers) -> Infallible {
    let Address::On(address) = address else { return std::future::pending().await };
    let served = match listen(address).await {
        Ok(listener) => axum::serve(listener, router(metrics)).await,
        Err(error) => Err(error),
    };
    let error = served.err();
    tracing::warn!(%address, ?error, "no metrics, and no answers to probes: choose another --metrics-address");
    std::future::pending().await
}

/// All addresses means both families; on a machine without IPv6, the one there is.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if error.kind() != io::ErrorKind::AddrInUse && address.ip().is_unspecified() && address.is_ipv6() =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

fn router(metrics: impl Numbers) -> Router {
    let ready = metrics.clone();
    Router::new()
        .route(
            "/metrics",
            get(async move || {
                // It may ask the kernel, and many series take their time: nothing else waits for it.
                let metrics = metrics.clone();
                let text = tokio::task::spawn_blocking(move || metrics.text()).await;
                let text = text.ok().and_then(Result::ok).ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
                Ok::<_, StatusCode>(([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], text))
            }),
        )
        // The one thread of this process does everything: if it answers, it works.
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async move || match ready.unready() {
                None => (StatusCode::OK, "ok\n".to_owned()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            }),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// The first line, the type and the last line of the answer.
    async fn asked(address: SocketAddr, path: &str) -> (String, String, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: landfall\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let type_ = answer.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
        let line = |line: Option<&str>| line.unwrap_or_default().to_owned();
        (line(answer.lines().next()), type_.to_owned(), line(answer.lines().last()))
    }

    #[tokio::test]
    async fn numbers_health_and_readiness_are_told() {
        let listener = listen("[::]:0".parse().expect("an address")).await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        // Over IPv4, although it listens on IPv6 where there is that.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ask = async {
            let plain = "text/plain; charset=utf-8";
            let expected = [
                ("/metrics", "HTTP/1.1 200 OK", Metrics::CONTENT_TYPE, "# EOF"),
                ("/healthz", "HTTP/1.1 200 OK", plain, "ok"),
                ("/readyz", "HTTP/1.1 503 Service Unavailable", plain, "the API server has not told yet what there is"),
            ];
            for (path, status, type_, last) in expected {
                assert_eq!(asked(address, path).await, (status.into(), type_.into(), last.into()), "{path}");
            }
        };
        tokio::select! {
            ended = axum::serve(listener, router(Metrics::default())) => panic!("{ended:?}"),
            () = ask => {}
        }
    }

    #[test]
    fn an_address_is_one_with_a_port_or_off() {
        assert_eq!("off".parse(), Ok(Address::Off));
        assert_eq!("127.0.0.1:9646".parse(), Ok(Address::On(SocketAddr::from((Ipv4Addr::LOCALHOST, 9646)))));
        assert!("9646".parse::<Address>().is_err());
    }
}
