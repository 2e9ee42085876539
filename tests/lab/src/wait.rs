//! Waiting for a condition, with an end: never sleep for as long as one hopes it takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two looks. Short against what a person or a test notices, long against the cost of a look.
const PAUSE: Duration = Duration::from_millis(25);

/// Looks until `condition` gives a value, for at most `within`. An error from it is what was last seen, not a failure;
/// when time is up, it becomes the cause of one that says what was waited for.
///
/// ```no_run
/// # async fn example(pods: kube::Api<k8s_openapi::api::core::v1::Pod>) -> anyhow::Result<()> {
/// use std::time::Duration;
/// let pod = lab::wait_until(Duration::from_secs(10), "pod x to have an address", async || {
///     let pod = pods.get("x").await?;
///     pod.status.and_then(|status| status.pod_ip).ok_or_else(|| anyhow::anyhow!("it has none"))
/// })
/// .await?;
/// # Ok(()) }
/// ```
pub async fn wait_until<T>(within: Duration, what: &str, mut condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        // A look that hangs must not outlive the deadline.
        let left = within.saturating_sub(start.elapsed()).max(PAUSE);
        let seen = match tokio::time::timeout(left, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("the last look did not come to an end"),
        };
        if start.elapsed() + PAUSE >= within {
            return Err(seen).with_context(|| format!("waited {within:?} for {what}; last seen"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_value_comes_as_soon_as_the_condition_holds() {
        let mut looks = 0;
        let value = wait_until(Duration::from_secs(5), "three looks", async || {
            looks += 1;
            anyhow::ensure!(looks == 3, "{looks} looks");
            Ok(looks)
        });
        assert_eq!(value.await.expect("it holds"), 3);
    }

    #[tokio::test]
    async fn a_wait_in_vain_says_what_was_last_seen() {
        let error =
            wait_until(Duration::from_millis(80), "rain", async || anyhow::bail!("sunshine") as Result<()>).await;
        let said = format!("{:#}", error.expect_err("no rain"));
        assert_eq!(said, "waited 80ms for rain; last seen: sunshine");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_with_the_wait() {
        let error =
            wait_until(Duration::from_millis(80), "godot", async || std::future::pending::<Result<()>>().await).await;
        assert!(format!("{:#}", error.expect_err("never")).contains("did not come to an end"));
    }
}
