//! Writes to the API server while nothing happens: I14. Pure.

use std::collections::BTreeMap;

/// The counter of the API server.
const COUNTER: &str = "apiserver_request_total{";

/// Verbs of writes, as the API server names them.
const WRITES: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];

/// The number of writes so far to each kind of object that only Landfall writes in an idle cluster: its own objects,
/// and the status of Services. Leases are renewed all the time and do not count.
pub fn count_writes(metrics: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix(COUNTER)) {
        let Some((labels, value)) = line.split_once("} ") else { continue };
        let label = |name: &str| labels.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
        let (Some(resource), Some(verb)) = (label("resource"), label("verb")) else { continue };
        let subresource = label("subresource").unwrap_or_default();
        let is_ours = labels.contains("group=\"landfall.dev\"") || (resource, subresource) == ("services", "status");
        if is_ours && WRITES.contains(&verb) {
            let name = format!("{verb} {resource}");
            *counts.entry(name).or_default() += value.trim().parse::<f64>().unwrap_or(0.0) as u64;
        }
    }
    counts
}

/// The writes between two counts, as a text; `None` without a write.
pub fn describe_writes(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Option<String> {
    let new = after.iter().map(|(name, count)| (name, count - before.get(name).copied().unwrap_or(0).min(*count)));
    let lines: Vec<_> = new.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} × {name}")).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_landfall_are_counted() {
        let line = |group: &str, resource: &str, subresource: &str, verb: &str, count: &str| {
            format!(
                "apiserver_request_total{{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"{group}\",\
                 resource=\"{resource}\",scope=\"resource\",subresource=\"{subresource}\",verb=\"{verb}\",\
                 version=\"v1\"}} {count}\n"
            )
        };
        let ours = "landfall.dev";
        for (case, text, expected) in [
            ("a status", line(ours, "loadbalancerips", "status", "PATCH", "3"), Some(("PATCH loadbalancerips", 3))),
            ("a Service", line("", "services", "status", "PATCH", "1e+06"), Some(("PATCH services", 1_000_000))),
            ("a user's edit", line("", "services", "", "PATCH", "1"), None),
            ("a watch", line(ours, "ipaddresspools", "", "WATCH", "9"), None),
            ("a Lease", line("coordination.k8s.io", "leases", "", "PATCH", "9"), None),
            ("another counter", "apiserver_request_sli{group=\"landfall.dev\"} 1\n".to_owned(), None),
            ("cut short", COUNTER.to_owned(), None),
        ] {
            let expected = expected.map(|(name, count)| (name.to_owned(), count)).into_iter().collect();
            assert_eq!(count_writes(&text), expected, "{case}");
        }
    }

    #[test]
    fn only_new_writes_are_described() {
        let counts = |all: &[(&str, u64)]| all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        for (case, before, after, expected) in [
            ("no write", &[("PATCH services", 3)][..], &[("PATCH services", 3)][..], None),
            ("a write", &[("PATCH services", 3)], &[("PATCH services", 5)], Some("2 × PATCH services")),
            ("a first write", &[], &[("POST loadbalancerips", 1)], Some("1 × POST loadbalancerips")),
            ("a restarted API server", &[("PATCH services", 3)], &[("PATCH services", 2)], None),
        ] {
            let description = describe_writes(&counts(before), &counts(after));
            assert_eq!(description.as_deref(), expected, "{case}");
        }
    }
}
