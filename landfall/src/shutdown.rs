//! The signals that stop this process.

use tokio::signal::unix::{SignalKind, signal};

/// Completes on SIGTERM (sent by Kubernetes) or SIGINT (Ctrl-C).
pub(crate) async fn wait_for_signal() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
    }
    Ok(())
}
