//! The members' names in the hosts file: one marked block per network, everything else kept byte for byte.
//!
//! ```text
//! # ntcp-overlay NETWORK begin
//! 10.77.0.1    NAME  # ntcp-overlay NETWORK
//! fd12::a4d:1  NAME  # ntcp-overlay NETWORK
//! # ntcp-overlay NETWORK end
//! ```
//!
//! Every line of ours carries the tag, so that they can be told from the user's even if somebody has cut one marker away.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::base::addr::OverlayAddrs;

/// Puts the block of `network` into the hosts file `path`, in place of an older one if there is one; writes nothing if
/// it stands there already. An unterminated last line gets its end.
///
/// # Errors
/// When the file cannot be read or written, or `InvalidInput` for a name that is not made of DNS labels.
pub fn write_block(path: &Path, network: &str, hosts: &[(String, OverlayAddrs)]) -> io::Result<()> {
    let block = block(network, hosts)?;
    let old = fs::read(path)?;
    let (mut new, at) = without_block(&old, network);
    let at = at.unwrap_or_else(|| {
        if new.last().is_some_and(|last| *last != b'\n') {
            new.push(b'\n');
        }
        new.len()
    });
    new.splice(at..at, block);
    replace(path, &old, &new)
}

/// Takes the block of `network` out again; a file without one, or no file, stays untouched.
///
/// # Errors
/// When the file cannot be read or written.
pub fn remove_block(path: &Path, network: &str) -> io::Result<()> {
    match fs::read(path) {
        Ok(old) => replace(path, &old, &without_block(&old, network).0),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn tag(network: &str) -> String {
    format!("# ntcp-overlay {network}")
}

fn block(network: &str, hosts: &[(String, OverlayAddrs)]) -> io::Result<Vec<u8>> {
    let tag = tag(network);
    if let Some(bad) =
        hosts.iter().map(|(name, _)| name.as_str()).chain([network]).find(|name| !is_name(name))
    {
        let words = format!("{bad:?} is no name for the hosts file: letters, digits, `-` and `.` only");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    }
    let mut out = format!("{tag} begin\n");
    for (name, addrs) in hosts {
        out.push_str(&format!("{}\t{name}\t{tag}\n{}\t{name}\t{tag}\n", addrs.v4, addrs.v6));
    }
    out.push_str(&format!("{tag} end\n"));
    Ok(out.into_bytes())
}

/// Labels of letters, digits and hyphens: nothing that could end the line or begin another.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

/// What a line of the file is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    Begin,
    End,
    /// An entry of ours, by its tag.
    Ours,
    Theirs,
}

fn kind(line: &[u8], tag: &str) -> Line {
    let line = line.trim_ascii();
    let Some(head) = line.strip_suffix(tag.as_bytes()) else {
        return match line.strip_prefix(tag.as_bytes()) {
            Some(b" begin") => Line::Begin,
            Some(b" end") => Line::End,
            _ => Line::Theirs,
        };
    };
    if head.is_empty() || head.starts_with(b"#") { Line::Theirs } else { Line::Ours }
}

/// The file without our block, and where the first one stood.
///
/// A whole block goes with everything in it. Of half a block only the marker and tagged lines go, wherever they are, and
/// an entry that a crash cut short at the very end: what else stands there may be the user's.
fn without_block(text: &[u8], network: &str) -> (Vec<u8>, Option<usize>) {
    let tag = tag(network);
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut place = None;
    // How many lines were kept when the last first marker came, while no last marker has come.
    let mut open = None;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match kind(line, &tag) {
            Line::Begin => open = Some(kept.len()),
            Line::End => {
                if let Some(start) = open.take() {
                    kept.truncate(start);
                    place = place.or(Some(start));
                }
            }
            Line::Ours => {}
            Line::Theirs if open.is_some() && is_cut_short(line) => {}
            Line::Theirs => kept.push(line),
        }
    }
    let place = place.map(|lines| kept.iter().take(lines).map(|line| line.len()).sum());
    (kept.concat(), place)
}

/// Whether a line may be the first part of an entry of ours: no end of line, an address, and then a tab or nothing.
fn is_cut_short(line: &[u8]) -> bool {
    let address = line.split(|byte| *byte == b'\t').next().unwrap_or_default();
    line.last() != Some(&b'\n')
        && address.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':'))
}

/// Gives `path` new contents: whole or not at all where a rename is possible; in place where it is not (a bind mount, or
/// a directory that we may not write to).
fn replace(path: &Path, old: &[u8], new: &[u8]) -> io::Result<()> {
    if old == new {
        return Ok(());
    }
    // A rename would replace a symbolic link instead of what it points to.
    let path = fs::canonicalize(path)?;
    if rename_over(&path, new).is_ok() {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().write(true).open(&path)?;
    file.write_all(new)?;
    file.set_len(new.len() as u64)?;
    file.sync_all()
}

fn rename_over(path: &Path, new: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".ntcp-overlay");
    let result = write_like(path, aside.as_ref(), new).and_then(|()| fs::rename(&aside, path));
    if result.is_err() {
        // If there is none, there is nothing to take away.
        let _ = fs::remove_file(&aside);
    }
    result
}

/// Makes the file `aside`, with the owner and the permissions of `path`.
fn write_like(path: &Path, aside: &Path, new: &[u8]) -> io::Result<()> {
    let like = fs::metadata(path)?;
    // What a crash has left.
    let _ = fs::remove_file(aside);
    let mut file = File::create_new(aside)?;
    file.write_all(new)?;
    std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
    file.set_permissions(like.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const THEIRS: &str =
        "127.0.0.1\tlocalhost\n# a comment, tabs\tand  spaces \n\n::1 localhost ip6-localhost\n";

    fn host(name: &str, last: u8) -> (String, OverlayAddrs) {
        let v6 = format!("fd12::a4d:{last:x}").parse().unwrap();
        (name.to_owned(), OverlayAddrs { v4: [10, 77, 0, last].into(), v6 })
    }

    fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    const WEB: &str = "# ntcp-overlay home begin\n10.77.0.1\tweb\t# ntcp-overlay home\nfd12::a4d:1\tweb\t# \
                       ntcp-overlay home\n# ntcp-overlay home end\n";

    #[test]
    fn a_block_comes_changes_in_its_place_and_goes_without_a_trace() {
        let (_dir, path) = file(THEIRS);
        write_block(&path, "home", &[host("web", 1)]).unwrap();
        assert_eq!(read(&path), format!("{THEIRS}{WEB}"));
        fs::write(&path, format!("{THEIRS}{WEB}10.1.1.1 later\n")).unwrap();
        write_block(&path, "home", &[host("db", 2), host("web", 1)]).unwrap();
        let text = read(&path);
        assert!(text.starts_with(&format!("{THEIRS}# ntcp-overlay home begin\n10.77.0.2\tdb\t")), "{text}");
        assert!(text.ends_with("# ntcp-overlay home end\n10.1.1.1 later\n"), "{text}");
        remove_block(&path, "home").unwrap();
        assert_eq!(read(&path), format!("{THEIRS}10.1.1.1 later\n"));
    }

    #[test]
    fn a_last_line_without_end_gets_one_and_stays_as_it_was() {
        let (_dir, path) = file("127.0.0.1 localhost");
        write_block(&path, "home", &[host("web", 1)]).unwrap();
        assert_eq!(read(&path), format!("127.0.0.1 localhost\n{WEB}"));
        remove_block(&path, "home").unwrap();
        assert_eq!(read(&path), "127.0.0.1 localhost\n");
        let (_dir, empty) = file("");
        write_block(&empty, "home", &[host("web", 1)]).unwrap();
        assert_eq!(read(&empty), WEB);
    }

    #[test]
    fn whatever_is_left_of_a_block_goes_and_nothing_of_the_users() {
        let (begin, entry, end) = (
            "# ntcp-overlay home begin\n",
            "10.77.0.9\told\t# ntcp-overlay home\n",
            "# ntcp-overlay home end\n",
        );
        let cases = [
            ("no end", format!("a\n{begin}{entry}b\n"), "a\nb\n"),
            ("no begin", format!("a\n{entry}{end}b\n"), "a\nb\n"),
            ("two begins", format!("a\n{begin}b\n{begin}{entry}{end}c\n"), "a\nb\nc\n"),
            ("two ends", format!("a\n{begin}{entry}{end}b\n{end}"), "a\nb\n"),
            ("two blocks", format!("{begin}{entry}{end}b\n{begin}{entry}{end}c"), "b\nc"),
            ("cut in an entry", format!("a\n{begin}{entry}10.77.0.8\tne"), "a\n"),
            ("cut in an address", format!("a\n{begin}{entry}10.7"), "a\n"),
            ("the user's last line", format!("a\n{begin}{entry}10.1.1.1 mine"), "a\n10.1.1.1 mine"),
            ("only an entry", format!("a\n{entry}b"), "a\nb"),
            ("edited inside", format!("a\n{begin}{entry}# x\n{end}b\n"), "a\nb\n"),
            ("windows", format!("a\r\n{begin}{entry}{end}b\r\n").replace("home\n", "home\r\n"), "a\r\nb\r\n"),
        ];
        for (name, text, left) in cases {
            let (_dir, path) = file(&text);
            remove_block(&path, "home").unwrap();
            assert_eq!(read(&path), left, "{name}");
            fs::write(&path, &text).unwrap();
            write_block(&path, "home", &[host("web", 1)]).unwrap();
            let written = read(&path);
            assert_eq!(written.matches("begin").count(), 1, "{name}: {written}");
            assert!(written.contains(WEB) && !written.contains("old"), "{name}: {written}");
            remove_block(&path, "home").unwrap();
            assert_eq!(read(&path).trim_end(), left.trim_end(), "{name}");
        }
    }

    #[test]
    fn blocks_of_other_networks_and_comments_that_look_alike_are_left_alone() {
        let others = "# ntcp-overlay home2 begin\n10.78.0.1\tx\t# ntcp-overlay home2\n# ntcp-overlay home2 end\n\
                      # see # ntcp-overlay home\n# ntcp-overlay home\n# ntcp-overlay home begins\n";
        let (_dir, path) = file(others);
        write_block(&path, "home", &[]).unwrap();
        remove_block(&path, "home").unwrap();
        assert_eq!(read(&path), others);
    }

    #[test]
    fn bytes_that_are_no_text_survive() {
        let odd = b"127.0.0.1 caf\xe9\n\x00\xff\n";
        let (_dir, path) = file(odd);
        write_block(&path, "home", &[host("web", 1)]).unwrap();
        remove_block(&path, "home").unwrap();
        assert_eq!(fs::read(&path).unwrap(), odd);
    }

    #[test]
    fn a_name_that_could_forge_lines_is_refused_and_nothing_is_written() {
        let (_dir, path) = file(THEIRS);
        for bad in ["", "a b", "a\n1.2.3.4 bank", "a#b", "a..b", "tün", "a\tb"] {
            let error = write_block(&path, "home", &[host(bad, 1)]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad:?}");
            assert!(write_block(&path, bad, &[]).is_err(), "{bad:?}");
        }
        assert_eq!(read(&path), THEIRS);
    }

    #[test]
    fn permissions_links_and_untouched_files_stay() {
        let (dir, path) = file(THEIRS);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_block(&link, "home", &[host("web", 1)]).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let inode = fs::metadata(&path).unwrap().ino();
        write_block(&link, "home", &[host("web", 1)]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "nothing new, nothing written");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no leftovers");
        remove_block(&dir.path().join("missing"), "home").unwrap();
        assert!(write_block(&dir.path().join("missing"), "home", &[]).is_err());
    }

    #[test]
    fn where_a_rename_is_impossible_the_file_is_written_in_place() {
        let (dir, path) = file(THEIRS);
        let inode = fs::metadata(&path).unwrap().ino();
        // A directory in the place of the temporary file stands for a directory that may not be written.
        fs::create_dir_all(dir.path().join("hosts.ntcp-overlay/in the way")).unwrap();
        write_block(&path, "home", &[host("web", 1), host("db", 2)]).unwrap();
        write_block(&path, "home", &[host("web", 1)]).unwrap();
        assert_eq!(read(&path), format!("{THEIRS}{WEB}"), "shorter than before: cut to its length");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }
}
