//! How long Services wait for their first answer.
//!
//! What was seen of a Service, the local monotonic time → how long it waited, when it has got its addresses. One that is
//! refused has its answer: what comes later depends on people, and is not measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crds::service::ALLOCATED;
use crds::{Key, Service};

/// The Services that wait for an answer, and since when. No more than there are such.
#[derive(Debug, Default)]
pub(crate) struct Waiting(BTreeMap<Key, Instant>);

impl Waiting {
    /// The Service is this now (`None`: there is none). How long it has waited, if that is over because it has addresses.
    pub(crate) fn saw(
        &mut self,
        key: &Key,
        service: Option<&Service>,
        default: bool,
        now: Instant,
    ) -> Option<Duration> {
        let service = service.filter(|service| service.is_ours(default) && !service.deleting);
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
    fn a_service_waits_from_when_it_is_seen_to_want_until_it_has_addresses() {
        let (wants, has) = (service("LoadBalancer", json!(null)), service("LoadBalancer", json!("True")));
        let (refused, other) = (service("LoadBalancer", json!("False")), service("ClusterIP", json!(null)));
        let second = Duration::from_secs(1);
        for (seen, waited) in [
            (vec![Some(&wants), Some(&wants), Some(&has)], Some(2 * second)),
            (vec![Some(&other), Some(&wants), Some(&has)], Some(second)),
            (vec![Some(&has)], None),
            (vec![Some(&wants), Some(&refused), Some(&has)], None),
            (vec![Some(&wants), None, Some(&has)], None),
            (vec![Some(&wants), Some(&other)], None),
        ] {
            let (mut waiting, mut now) = (Waiting::default(), Instant::now());
            let mut last = None;
            for service in &seen {
                last = waiting.saw(&Key::new("default", "web"), *service, true, now);
                now += second;
            }
            assert_eq!((last, waiting.0.len()), (waited, 0), "{seen:?}");
        }
    }
}
