//! Waits for a condition, with a time limit, instead of sleeping for a guessed time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Pause between two attempts: short for a test or a person, long compared with the cost of an attempt.
const PAUSE: Duration = Duration::from_millis(25);

/// Variable with a factor for limits of waiting, for emulated processors.
const PATIENCE: &str = "LANDFALL_LAB_PATIENCE";

/// A limit of waiting, multiplied by the factor in `$LANDFALL_LAB_PATIENCE`. Only for limits that detect a machine that
/// hangs, not for bounds of a promise.
pub fn extend_limit(limit: Duration) -> Duration {
    let factor = std::env::var(PATIENCE).ok().and_then(|factor| factor.parse().ok());
    limit * factor.unwrap_or(1)
}

/// Calls `condition` until it returns a value, for at most `within`. An error of `condition` is an observation, not a
/// failure. After the time limit, the last error becomes the cause of an error that names `what`.
///
/// ```no_run
/// # async fn example(pods: kube::Api<k8s_openapi::api::core::v1::Pod>) -> anyhow::Result<()> {
/// use std::time::Duration;
/// let pod = lab::wait_until(Duration::from_secs(10), "pod x to have an address", async || {
///     let pod = pods.get("x").await?;
///     pod.status.and_then(|status| status.pod_ip).ok_or_else(|| anyhow::anyhow!("no address"))
/// })
/// .await?;
/// # Ok(()) }
/// ```
pub async fn wait_until<T>(within: Duration, what: &str, mut condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        // An attempt that hangs must not outlive the time limit.
        let left = within.saturating_sub(start.elapsed()).max(PAUSE);
        let last_error = match tokio::time::timeout(left, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("the last attempt did not end"),
        };
        if start.elapsed() + PAUSE >= within {
            return Err(last_error).with_context(|| format!("waited {within:?} for {what}; last seen"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_when_the_condition_holds() {
        let mut attempts = 0;
        let value = wait_until(Duration::from_secs(5), "three attempts", async || {
            attempts += 1;
            anyhow::ensure!(attempts == 3, "{attempts} attempts");
            Ok(attempts)
        });
        assert_eq!(value.await.expect("the condition holds"), 3);
    }

    #[tokio::test]
    async fn a_timeout_reports_the_last_observation() {
        let error =
            wait_until(Duration::from_millis(80), "rain", async || anyhow::bail!("sunshine") as Result<()>).await;
        let message = format!("{:#}", error.expect_err("no rain"));
        assert_eq!(message, "waited 80ms for rain; last seen: sunshine");
    }

    #[tokio::test]
    async fn a_hanging_attempt_ends_with_the_wait() {
        let error =
            wait_until(Duration::from_millis(80), "godot", async || std::future::pending::<Result<()>>().await).await;
        assert!(format!("{:#}", error.expect_err("never")).contains("did not end"));
    }
}
