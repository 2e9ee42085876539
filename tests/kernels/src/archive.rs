//! The first file system of a guest: an archive in cpio's format "newc", which the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Pure.

/// An archive.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The name of the last entry.
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    /// Adds a folder. Its parent must be in the archive already.
    pub fn add_folder(&mut self, path: &str) {
        self.add(path, FOLDER, (0, 0), &[]);
    }

    /// Adds a file that can be executed.
    pub fn add_file(&mut self, path: &str, content: &[u8]) {
        self.add(path, PROGRAM, (0, 0), content);
    }

    /// Adds a character device with these numbers.
    pub fn add_device(&mut self, path: &str, numbers: (u32, u32)) {
        self.add(path, CHARACTER_DEVICE, numbers, &[]);
    }

    /// The bytes of the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.add(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn add(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).expect("invariant: files of a guest are small");
        let links = if mode == FOLDER { 2 } else { 1 };
        let (size, name_size) = (length(content.len()), length(path.len() + 1));
        // Inode, mode, owner, group, links, time, size, device of the file, device numbers, size of the name, checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let mut archive = Archive::default();
        archive.add_folder("dev");
        archive.add_device("dev/null", (1, 3));
        archive.add_file("init", b"hello");
        let expected = concat!(
            "070701",
            "00000001",
            "000041ed",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000004",
            "00000000",
            "dev\0\0\0",
            "070701",
            "00000002",
            "00002180",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000003",
            "00000009",
            "00000000",
            "dev/null\0\0",
            "070701",
            "00000003",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000005",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0\0hello\0\0\0",
            "070701",
            "00000004",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0\0\0\0",
        );
        assert_eq!(String::from_utf8(archive.finish()).expect("text"), expected);
    }
}
