//! The names of Debian's kernel packages. Pure.

use std::cmp::Reverse;

/// The series of a release: `6.18` of `6.18.44-fc`.
pub fn series(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}"))
}

/// The newest of these packages that has a usual kernel of this series. Variants do not count: kernels for clouds,
/// which have few drivers, kernels for real time, unsigned kernels, and debug symbols.
pub fn newest<'a>(names: impl IntoIterator<Item = &'a str>, series: &str) -> Option<&'a str> {
    let versions = names.into_iter().filter_map(|name| Some((version(name, series)?, name)));
    versions.min_by_key(|(version, _)| Reverse(version.clone())).map(|(_, name)| name)
}

/// The numbers after the series: `[0, 32]` of `linux-image-5.10.0-32-amd64`.
fn version(name: &str, series: &str) -> Option<Vec<u32>> {
    let version = name.strip_prefix("linux-image-")?.strip_prefix(series)?.strip_prefix('.')?;
    let version = version.strip_suffix("-amd64")?;
    // `+deb13` is the release of Debian.
    let version = version.split('+').next()?;
    let is_variant = name.split(['-', '+']).any(|word| matches!(word, "cloud" | "rt" | "unsigned" | "dbg"));
    if is_variant {
        return None;
    }
    version.split(['.', '-']).map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_is_the_first_two_numbers() {
        for (release, expected) in [
            ("6.18.44-fc-v782", Some("6.18")),
            ("5.10.0-32-amd64", Some("5.10")),
            ("6.1", Some("6.1")),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(series(release).as_deref(), expected, "{release}");
        }
    }

    #[test]
    fn the_newest_usual_package_of_a_series_is_chosen() {
        let names = [
            "linux-image-5.10.0-9-amd64",
            "linux-image-5.10.0-32-amd64",
            "linux-image-5.10.0-40-cloud-amd64",
            "linux-image-5.10.0-40-rt-amd64",
            "linux-image-5.10.0-40-amd64-unsigned",
            "linux-image-5.10.0-40-amd64-dbg",
            "linux-image-6.1.0-50-amd64",
            "linux-image-6.12.9+deb13-amd64",
            "linux-image-6.12.117+deb13-amd64",
            "linux-image-6.12.118+deb13-cloud-amd64",
            "linux-image-amd64",
        ];
        for (series, expected) in [
            ("5.10", Some("linux-image-5.10.0-32-amd64")),
            ("6.1", Some("linux-image-6.1.0-50-amd64")),
            ("6.12", Some("linux-image-6.12.117+deb13-amd64")),
            ("6.18", None),
        ] {
            assert_eq!(newest(names, series), expected, "{series}");
        }
    }
}
