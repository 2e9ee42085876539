//! How long Services wait for their addresses.
//!
//! Observed Services, the local monotonic time → how long a Service waited, when it has its addresses. A refusal ends
//! the measurement: the time after it depends on users.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crds::service::ALLOCATED;
use crds::{Key, Service};

/// The Services without the condition `Allocated`, and since when they wait.
#[derive(Debug, Default)]
pub(crate) struct WaitingServices(BTreeMap<Key, Instant>);

impl WaitingServices {
    /// Observes a Service (`None`: it does not exist). Returns how long it has waited, if it has its addresses now.
    pub(crate) fn observe(
        &mut self,
        key: &Key,
        service: Option<&Service>,
        default_class: bool,
        now: Instant,
    ) -> Option<Duration> {
        let service = service.filter(|service| service.is_ours(default_class) && !service.deleting);
        if service.is_some_and(|service| service.conditions.iter().all(|condition| condition.type_ != ALLOCATED)) {
            self.0.entry(key.clone()).or_insert(now);
            return None;
        }
        let since = self.0.remove(key)?;
        service.filter(|service| service.is_allocated()).map(|_| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(type_: &str, allocated: Value) -> Service {
        let condition = |status: &Value| {
            json!([{
                "type": ALLOCATED, "status": status, "reason": "Any", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }])
        };
        let conditions = if allocated.is_null() { json!([]) } else { condition(&allocated) };
        let object = json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"type": type_},
            "status": {"conditions": conditions},
        });
        let object: k8s_openapi::api::core::v1::Service = serde_json::from_value(object).expect("a Service");
        Service::try_from(&object).expect("a Service")
    }

    #[test]
    fn wait_lasts_from_first_sight_to_addresses() {
        let (pending, has) = (service("LoadBalancer", json!(null)), service("LoadBalancer", json!("True")));
        let (refused, other) = (service("LoadBalancer", json!("False")), service("ClusterIP", json!(null)));
        let second = Duration::from_secs(1);
        for (seen, waited) in [
            (vec![Some(&pending), Some(&pending), Some(&has)], Some(2 * second)),
            (vec![Some(&other), Some(&pending), Some(&has)], Some(second)),
            (vec![Some(&has)], None),
            (vec![Some(&pending), Some(&refused), Some(&has)], None),
            (vec![Some(&pending), None, Some(&has)], None),
            (vec![Some(&pending), Some(&other)], None),
        ] {
            let (mut waiting, mut now) = (WaitingServices::default(), Instant::now());
            let mut last = None;
            for service in &seen {
                last = waiting.observe(&Key::new("default", "web"), *service, true, now);
                now += second;
            }
            assert_eq!((last, waiting.0.len()), (waited, 0), "{seen:?}");
        }
    }
}
