//! Requests to the API server, their fates, and scripts that choose the fates.

use std::net::IpAddr;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Uri};
use hyper::body::Bytes;
use k8s_openapi::ByteString;
use kube::client::Body;
use serde_json::{Value, json};

/// The ServiceAccount of the agents.
const AGENT_ACCOUNT: &str = "landfall-node";

/// The fate of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// It never reaches the API server, and its connection ends.
    LoseRequest,
    /// The API server processes it. Its connection ends without the answer.
    LoseAnswer,
    /// Its connection ends at once. It reaches the API server after this time.
    Late(Duration),
    /// The API server processes it at once, and its answer is sent after this time.
    Delay(Duration),
    /// It never reaches the API server, and is answered with this status. 429 has a `Retry-After`.
    Refuse(u16),
    /// It never reaches the API server, and has no answer. Its connection stays open.
    Hang,
    /// It passes. If it is a watch, no event is forwarded, nor the end of the watch.
    Silence,
}

impl Fate {
    /// Whether a request may stay without an end until its connection breaks.
    pub fn is_open_ended(self) -> bool {
        matches!(self, Self::Hang | Self::Silence)
    }
}

/// Chooses the fates of requests.
pub trait Script: Send + 'static {
    /// The fate of a request that has just arrived.
    fn fate(&mut self, request: &StoredRequest) -> Fate;

    /// The API server has answered a request with the fate [`Fate::LoseAnswer`], whose connection ends now.
    fn lost_answer(&mut self, _request: &StoredRequest) {}

    /// Whether no event of this open watch is forwarded from now on.
    fn withholds_events(&self, _watch: &StoredRequest) -> bool {
        false
    }
}

/// A client of the API server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiClient {
    /// Its address on the LAN. Pods may have that of their node.
    pub address: IpAddr,
    /// The name of its ServiceAccount.
    pub account: Option<String>,
}

impl ApiClient {
    /// Whether it is an agent.
    pub fn is_agent(&self) -> bool {
        self.account.as_deref() == Some(AGENT_ACCOUNT)
    }
}

/// The name of the ServiceAccount in the token of a request.
pub fn service_account(headers: &HeaderMap) -> Option<String> {
    let token = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    // The second part of a JWT is JSON in base64 for URLs, without padding.
    let mut claims = token.split('.').nth(1)?.replace('-', "+").replace('_', "/");
    claims.extend(std::iter::repeat_n('=', (4 - claims.len() % 4) % 4));
    let claims: ByteString = serde_json::from_value(json!(claims)).ok()?;
    let claims: Value = serde_json::from_slice(&claims.0).ok()?;
    Some(claims["kubernetes.io"]["serviceaccount"]["name"].as_str()?.to_owned())
}

/// A complete request, which can be sent at any time.
#[derive(Clone, Debug)]
pub struct StoredRequest {
    pub client: ApiClient,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl StoredRequest {
    /// Whether it requests a watch.
    pub fn is_watch(&self) -> bool {
        self.uri.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"))
    }

    /// Whether it requests a change.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    /// The request for a client of the API server.
    pub fn to_request(&self) -> Request<Body> {
        let mut request = Request::new(Body::from(self.body.to_vec()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_token_names_the_service_account() {
        let claims = json!({"kubernetes.io": {"serviceaccount": {"name": "landfall-node"}}, "aud": ["??>>~~"]});
        let base64 = json!(ByteString(claims.to_string().into_bytes())).as_str().expect("text").to_owned();
        let for_urls = base64.trim_end_matches('=').replace('+', "-").replace('/', "_");
        let authorization = |text: String| {
            let value = HeaderValue::from_str(&text).expect("a header");
            HeaderMap::from_iter([(AUTHORIZATION, value)])
        };
        for (case, headers, expected) in [
            ("a token", authorization(format!("Bearer e30.{for_urls}.c2ln")), Some("landfall-node")),
            ("another scheme", authorization(format!("Basic e30.{for_urls}.c2ln")), None),
            ("an opaque token", authorization("Bearer abc".to_owned()), None),
            ("claims of another kind", authorization("Bearer e30.e30.c2ln".to_owned()), None),
            ("no header", HeaderMap::new(), None),
        ] {
            assert_eq!(service_account(&headers).as_deref(), expected, "{case}");
        }
    }
}
