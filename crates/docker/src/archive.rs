//! The little of tar that the engine's archive API needs: one regular file.

const BLOCK: usize = 512;

/// A file with what must stay when it is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
}

/// A tar with this one file in it. `None` if the name does not fit.
pub(crate) fn pack(name: &str, file: &File) -> Option<Vec<u8>> {
    if name.is_empty() || name.len() > 99 {
        return None;
    }
    let mut header = [0_u8; BLOCK];
    put(&mut header, 0, name.as_bytes());
    put(&mut header, 100, format!("{:07o}", file.mode & 0o7777).as_bytes());
    put(&mut header, 108, format!("{:07o}", file.uid & 0o777_7777).as_bytes());
    put(&mut header, 116, format!("{:07o}", file.gid & 0o777_7777).as_bytes());
    put(&mut header, 124, format!("{:011o}", file.bytes.len()).as_bytes());
    put(&mut header, 136, b"00000000000");
    put(&mut header, 148, b"        ");
    put(&mut header, 156, b"0");
    put(&mut header, 257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(&file.bytes);
    tar.resize(tar.len().div_ceil(BLOCK) * BLOCK + 2 * BLOCK, 0);
    Some(tar)
}

/// The first regular file of a tar.
pub(crate) fn unpack(tar: &[u8]) -> Option<File> {
    let mut at = 0;
    loop {
        let header = tar.get(at..at + BLOCK)?;
        if header.iter().all(|byte| *byte == 0) {
            return None;
        }
        let size = usize::try_from(octal(&header[124..136])?).ok()?;
        let begin = at + BLOCK;
        if matches!(header[156], b'0' | 0) {
            return Some(File {
                bytes: tar.get(begin..begin.checked_add(size)?)?.to_vec(),
                mode: u32::try_from(octal(&header[100..108])?).ok()?,
                uid: octal(&header[108..116])?,
                gid: octal(&header[116..124])?,
            });
        }
        at = begin.checked_add(size.div_ceil(BLOCK) * BLOCK)?;
    }
}

fn put(header: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|letter: char| letter == '\0' || letter == ' ');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        for length in [0, 1, 511, 512, 513, 5000] {
            let file = File { bytes: vec![7; length], mode: 0o640, uid: 33, gid: 101 };
            assert_eq!(unpack(&pack("a.conf", &file).unwrap()), Some(file));
        }
        assert_eq!(pack(&"x".repeat(100), &File { bytes: vec![], mode: 0, uid: 0, gid: 0 }), None);
    }

    #[test]
    fn noise_is_no_archive() {
        assert_eq!(unpack(&[]), None);
        assert_eq!(unpack(&[b'x'; 600]), None);
        assert_eq!(unpack(&[0; 1024]), None);
    }
}
