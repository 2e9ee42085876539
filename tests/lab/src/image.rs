//! Images without a builder: packs one static binary into a docker-archive tar that containerd imports.
//!
//! ```text
//!   manifest.json     config and layers of each image name
//!   HASH.json         the config: entrypoint, architecture, hash of the layer
//!   HASH/layer.tar    the one layer: the binary, at the root
//! ```
//! The same binary gives the same bytes: times are zero and owners root.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image to write: a binary and the image's name.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// A static binary. It becomes the entrypoint, at the root of the image, under its own name.
    pub binary: &'a Path,
    /// A name such as `landfall:dev`. With a tag other than `latest`, kubelets use the loaded image and never pull it.
    pub name: &'a str,
}

/// Writes these images to one tar.
pub fn write_archive(images: &[Image<'_>], out: &Path) -> Result<()> {
    // The archive gets the name `out` at the end, so a file of that name is always complete.
    let unfinished = out.with_added_extension(std::process::id().to_string());
    let file = fs::File::create(&unfinished).with_context(|| format!("write {}", unfinished.display()))?;
    let mut archive = tar::Builder::new(std::io::BufWriter::new(file));
    let mut manifest = Vec::new();
    for image in images {
        ensure!(image.name.contains(':'), "image name {:?}: a tag is needed, as in {}:dev", image.name, image.name);
        let binary = fs::read(image.binary).with_context(|| format!("read the binary {}", image.binary.display()))?;
        let file_name = image.binary.file_name().context("the binary has no file name")?.to_string_lossy();
        let layer = layer(&file_name, &binary)?;
        let layer_id = hash(&layer);
        let config = config(&file_name, &layer_id).to_string().into_bytes();
        let config_name = format!("{}.json", hash(&config));
        let layer_name = format!("{layer_id}/layer.tar");
        append(&mut archive, &layer_name, 0o644, &layer)?;
        append(&mut archive, &config_name, 0o644, &config)?;
        manifest.push(json!({"Config": config_name, "RepoTags": [image.name], "Layers": [layer_name]}));
    }
    append(&mut archive, "manifest.json", 0o644, Value::from(manifest).to_string().as_bytes())?;
    archive.into_inner()?.flush().with_context(|| format!("write {}", unfinished.display()))?;
    fs::rename(&unfinished, out).with_context(|| format!("write the image {}", out.display()))
}

/// The root file system: the binary and nothing else.
fn layer(file_name: &str, binary: &[u8]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, file_name, 0o755, binary)?;
    Ok(layer.into_inner()?)
}

fn config(file_name: &str, layer_id: &str) -> Value {
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [format!("/{file_name}")], "Env": ["PATH=/"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_id}")]},
    })
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_names_a_config_that_names_the_layer() {
        let dir = std::env::temp_dir().join(format!("landfall-image-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("directory");
        let (binary, out) = (dir.join("hello"), dir.join("hello.tar"));
        fs::write(&binary, "#!/bin/true").expect("binary");
        write_archive(&[Image { binary: &binary, name: "hello:dev" }], &out).expect("image");
        let mut files = std::collections::BTreeMap::new();
        let mut archive = tar::Archive::new(fs::File::open(&out).expect("open"));
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let name = entry.path().expect("path").to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("read");
            files.insert(name, bytes);
        }
        fs::remove_dir_all(&dir).expect("clean up");
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).expect("manifest");
        assert_eq!(manifest[0]["RepoTags"], json!(["hello:dev"]));
        let config = &files[manifest[0]["Config"].as_str().expect("config")];
        let config: Value = serde_json::from_slice(config).expect("config");
        let layer = &files[manifest[0]["Layers"][0].as_str().expect("layer")];
        assert_eq!(config["rootfs"]["diff_ids"][0], json!(format!("sha256:{}", hash(layer))));
        assert_eq!(config["config"]["Entrypoint"], json!(["/hello"]));
    }
}
