//! The client of the API server.

use anyhow::Context;
use clap::Args;
use kube::{Client, Config};

/// How to find the API server: as kubectl does, by `$KUBECONFIG` or `~/.kube/config`, or in a pod by its service
/// account.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// URL of the API server, such as https://192.0.2.1:6443. Default: that of kubeconfig or of the pod.
    /// Required in clusters without kube-proxy or another Service proxy, where the in-cluster address does not work.
    #[arg(long, global = true, env = "LANDFALL_APISERVER", value_name = "URL")]
    apiserver: Option<http::Uri>,
}

impl Connection {
    /// Creates a client, without sending a request.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        create_client(self.config().await?)
    }

    /// Finds the API server. No request is sent.
    pub(crate) async fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::infer()
            .await
            .context("find the API server: no kubeconfig ($KUBECONFIG, ~/.kube/config), and not in a pod")?;
        if let Some(apiserver) = &self.apiserver {
            config.cluster_url = apiserver.clone();
        }
        // Callers decide when to retry: a retry inside a request would delay changes that arrive in the meantime.
        config.default_retry = false;
        Ok(config)
    }
}

/// Creates a client with connections of its own. They belong to the runtime of the caller.
pub(crate) fn create_client(config: Config) -> anyhow::Result<Client> {
    let url = config.cluster_url.clone();
    Client::try_from(config).with_context(|| format!("create a client for the API server at {url}"))
}
