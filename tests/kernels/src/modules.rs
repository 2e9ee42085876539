//! The order in which modules are loaded, from the files that `depmod` writes. Pure.

use std::collections::BTreeMap;

/// The modules of a kernel and their dependencies.
#[derive(Debug, Default)]
pub struct ModuleTable {
    /// Path below the folder of modules, and the paths of the dependencies, by name.
    modules: BTreeMap<String, (String, Vec<String>)>,
    /// The names of modules that are part of the kernel.
    builtin: Vec<String>,
}

/// Modules to load.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LoadOrder {
    /// Paths below the folder of modules. Each module comes after those that it depends on.
    pub paths: Vec<String>,
    /// Wanted modules that this kernel does not have.
    pub absent: Vec<String>,
}

impl ModuleTable {
    /// Reads `modules.dep` (`kernel/a.ko: kernel/b.ko kernel/c.ko`) and `modules.builtin` (`kernel/d.ko`).
    pub fn parse(dependencies: &str, builtin: &str) -> Self {
        let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
        let entry = |(path, others): (&str, &str)| {
            let others = others.split_whitespace().map(str::to_owned).collect();
            (name(path), (path.to_owned(), others))
        };
        Self { modules: lines.map(entry).collect(), builtin: builtin.lines().map(name).collect() }
    }

    /// The order in which to load the wanted modules, with their dependencies.
    pub fn load_order(&self, wanted: &[&str]) -> LoadOrder {
        let mut order = LoadOrder::default();
        for wanted in wanted.iter().map(|wanted| wanted.replace('-', "_")) {
            if self.modules.contains_key(&wanted) {
                self.add(&wanted, &mut order.paths);
            } else if !self.builtin.contains(&wanted) {
                order.absent.push(wanted);
            }
        }
        order
    }

    /// Adds a module behind its dependencies, if it is not there yet. The kernel has no circles of dependencies.
    fn add(&self, wanted: &str, paths: &mut Vec<String>) {
        let Some((path, dependencies)) = self.modules.get(wanted) else { return };
        if paths.contains(path) {
            return;
        }
        for dependency in dependencies {
            self.add(&name(dependency), paths);
        }
        paths.push(path.clone());
    }
}

/// The name of the module in a file: `nf_tables` of `kernel/net/netfilter/nf_tables.ko.xz`. Dashes and underscores in
/// file names are equivalent.
pub fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/net/8021q/8021q.ko.xz: kernel/net/802/mrp.ko.xz kernel/net/llc/llc.ko.xz\n\
                                kernel/net/802/mrp.ko.xz:\n\
                                kernel/net/llc/llc.ko.xz:\n\
                                kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz\n\
                                kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz\n\
                                kernel/drivers/virtio/virtio-ring.ko.xz:\n";

    #[test]
    fn modules_come_after_their_dependencies() {
        let table = ModuleTable::parse(DEPENDENCIES, "kernel/fs/overlayfs/overlay.ko\n");
        for (wanted, paths, absent) in [
            (&[][..], &[][..], &[][..]),
            (&["llc"], &["net/llc/llc"], &[]),
            (&["bridge"], &["net/llc/llc", "net/802/stp", "net/bridge/bridge"], &[]),
            (
                &["8021q", "llc", "bridge", "8021q"],
                &["net/802/mrp", "net/llc/llc", "net/8021q/8021q", "net/802/stp", "net/bridge/bridge"],
                &[],
            ),
            (&["virtio_ring"], &["drivers/virtio/virtio-ring"], &[]),
            (&["virtio-ring"], &["drivers/virtio/virtio-ring"], &[]),
            (&["overlay", "dummy"], &[], &["dummy"]),
        ] {
            let expected = LoadOrder {
                paths: paths.iter().map(|path| format!("kernel/{path}.ko.xz")).collect(),
                absent: absent.iter().map(|name: &&str| (*name).to_owned()).collect(),
            };
            assert_eq!(table.load_order(wanted), expected, "{wanted:?}");
        }
    }
}
