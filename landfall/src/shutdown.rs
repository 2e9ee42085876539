//! When this process is told to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Completes when the process gets SIGTERM (Kubernetes) or SIGINT (a person).
pub(crate) async fn requested() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
    }
    Ok(())
}
