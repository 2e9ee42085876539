//! The HTTP server: `/metrics` for Prometheus, `/healthz` and `/readyz` for the kubelet.
//!
//! The server is one future, which never ends by itself. Clients need no authentication, since the answers contain no
//! secrets.

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

/// The address at which the server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricsAddress {
    Off,
    On(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::On).map_err(|_| "expected ADDRESS:PORT, such as 127.0.0.1:9646, or off".to_owned())
    }
}

/// Answers requests until the future is dropped. `text` returns all metrics in the text format of OpenMetrics 1.0.
/// `unready` returns why the process is not ready, or `None` if it is ready. If the server cannot listen, this function
/// logs a warning, and the process continues.
pub(crate) async fn serve(
    address: MetricsAddress,
    text: impl Fn() -> Result<String, fmt::Error> + Clone + Send + Sync + 'static,
    unready: impl Fn() -> Option<&'static str> + Clone + Send + Sync + 'static,
) -> Infallible {
    let MetricsAddress::On(address) = address else { return std::future::pending().await };
    let served = match listen(address).await {
        Ok(listener) => axum::serve(listener, router(text, unready)).await,
        Err(error) => Err(error),
    };
    let error = served.err();
    tracing::warn!(%address, ?error, "cannot serve metrics and probes; choose another --metrics-address");
    std::future::pending().await
}

/// Listens at `address`. `[::]` stands for both families. On a host without IPv6, `0.0.0.0` takes its place.
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

fn router(
    text: impl Fn() -> Result<String, fmt::Error> + Clone + Send + Sync + 'static,
    unready: impl Fn() -> Option<&'static str> + Clone + Send + Sync + 'static,
) -> Router {
    Router::new()
        .route(
            "/metrics",
            get(async move || {
                // Reading the kernel's counters and encoding many series may take long, so another thread does it.
                let text = tokio::task::spawn_blocking(text.clone()).await;
                let text = text.ok().and_then(Result::ok).ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
                Ok::<_, StatusCode>(([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], text))
            }),
        )
        // All tasks share one thread, so an answer shows that no task blocks this thread.
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async move || match unready() {
                None => (StatusCode::OK, "ok\n".to_owned()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            }),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// The first line, the content type and the last line of the answer.
    async fn answer(address: SocketAddr, path: &str) -> (String, String, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: landfall\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        let type_ = text.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
        let line = |line: Option<&str>| line.unwrap_or_default().to_owned();
        (line(text.lines().next()), type_.to_owned(), line(text.lines().last()))
    }

    #[tokio::test]
    async fn metrics_health_and_readiness_are_served() {
        let listener = listen("[::]:0".parse().expect("an address")).await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        // The requests use IPv4. They also reach a server on `[::]`, because it listens for both families.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let requests = async {
            let plain = "text/plain; charset=utf-8";
            let expected = [
                ("/metrics", "HTTP/1.1 200 OK", Metrics::CONTENT_TYPE, "# EOF"),
                ("/healthz", "HTTP/1.1 200 OK", plain, "ok"),
                ("/readyz", "HTTP/1.1 503 Service Unavailable", plain, "waiting"),
            ];
            for (path, status, type_, last) in expected {
                assert_eq!(answer(address, path).await, (status.into(), type_.into(), last.into()), "{path}");
            }
        };
        let metrics = Metrics::default();
        tokio::select! {
            ended = axum::serve(listener, router(move || metrics.text(), || Some("waiting"))) => panic!("{ended:?}"),
            () = requests => {}
        }
    }

    #[test]
    fn a_metrics_address_has_a_port_or_is_off() {
        assert_eq!("off".parse(), Ok(MetricsAddress::Off));
        assert_eq!("127.0.0.1:9646".parse(), Ok(MetricsAddress::On(SocketAddr::from((Ipv4Addr::LOCALHOST, 9646)))));
        assert!("9646".parse::<MetricsAddress>().is_err());
    }
}
