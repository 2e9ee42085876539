//! The API server's count of requests, read from its metrics page. Pure.

use std::collections::BTreeMap;

/// The metric with the number of answers.
const COUNTER: &str = "apiserver_request_total{";

/// The verbs that write, as the API server names them.
const WRITES: [&str; 6] = ["APPLY", "DELETE", "DELETECOLLECTION", "PATCH", "POST", "PUT"];

/// How many writes the API server has answered, whatever the answer, by resource and subresource
/// (`services/status`).
pub fn writes(page: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in page.lines() {
        let Some((labels, value)) = line.strip_prefix(COUNTER).and_then(|rest| rest.rsplit_once("} ")) else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value)
        };
        let (Some(verb), Some(resource), Some(part)) = (label("verb"), label("resource"), label("subresource")) else {
            continue;
        };
        if WRITES.contains(&verb) && !resource.is_empty() {
            let name = if part.is_empty() { resource.to_owned() } else { format!("{resource}/{part}") };
            *counts.entry(name).or_default() += value.trim().parse::<f64>().unwrap_or_default() as u64;
        }
    }
    counts
}

/// The writes between two counts. Resources without writes are left out.
pub fn since(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = after.iter().map(|(name, count)| (name.clone(), count - before.get(name).unwrap_or(&0)));
    grown.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_by_resource_for_any_answer() {
        let page = r#"
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="services",scope="resource",subresource="status",verb="PATCH",version="v1"} 12
apiserver_request_total{code="409",component="apiserver",dry_run="",group="",resource="services",scope="resource",subresource="status",verb="PATCH",version="v1"} 3
apiserver_request_total{code="201",component="apiserver",dry_run="",group="landfall.dev",resource="loadbalancerips",scope="resource",subresource="",verb="POST",version="v1alpha1"} 1.5e+01
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="services",scope="cluster",subresource="",verb="LIST",version="v1"} 7
apiserver_request_total{code="404",component="",dry_run="",group="",resource="",scope="",subresource="/x",verb="POST",version=""} 1
apiserver_request_sli_duration_seconds_count{resource="services",subresource="",verb="POST"} 4
"#;
        let counts = writes(page);
        assert_eq!(counts, BTreeMap::from([("loadbalancerips".into(), 15), ("services/status".into(), 15)]));
        let mut later = counts.clone();
        later.insert("events".into(), 2);
        later.insert("services/status".into(), 16);
        assert_eq!(since(&counts, &later), BTreeMap::from([("events".into(), 2), ("services/status".into(), 1)]));
    }
}
