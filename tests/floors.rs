//! The floors hold: no module uses a module on its own floor or above, the thinking half uses nothing of the acting half
//! and no socket, clock, file, thread or runtime, and `unsafe` lives in `src/sys` alone.
//!
//! A scan of the source text, not of its meaning: comments, strings and test modules are blanked out, then paths are
//! looked for. The last tests prove that the scan sees what it should.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use Half::Acting;
use Half::Thinking;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Half {
    Thinking,
    Acting,
}

/// The table of `src/lib.rs`, with the modules that are still to come.
const FLOORS: [(&str, u8, Half); 23] = [
    ("cli", 8, Acting),
    ("engine", 7, Acting),
    ("config", 6, Acting),
    ("control", 6, Acting),
    ("node", 5, Thinking),
    ("path", 4, Thinking),
    ("discovery", 4, Thinking),
    ("stun", 3, Thinking),
    ("stunt", 3, Thinking),
    ("punch", 3, Thinking),
    ("relay", 3, Thinking),
    ("broker", 3, Thinking),
    ("tunnel", 3, Thinking),
    ("dns", 3, Thinking),
    ("io", 3, Acting),
    ("device", 3, Acting),
    ("portmap", 3, Acting),
    ("wire", 2, Thinking),
    ("identity", 1, Thinking),
    ("nat", 1, Thinking),
    ("sys", 1, Acting),
    ("base", 0, Thinking),
    ("main", 9, Acting),
];

/// What thinking code must not name: the world.
const WORLDLY: [&str; 21] = [
    "Instant::now",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "UnixListener",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "std::os",
    "tokio::",
    "tokio_rustls::",
    "libc::",
    "rustix::",
    "socket2::",
    "rtnetlink::",
    "tun_tap::",
    "println!",
    "eprintln!",
];

#[test]
fn every_module_uses_only_lower_floors_and_the_thinking_half_only_thinks() {
    let wrong: Vec<String> =
        sources().iter().flat_map(|file| complaints(&file.path, &file.text, file.is_test)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_table_is_the_one_in_the_crates_documentation() {
    let lib = fs::read_to_string(root().join("lib.rs")).unwrap();
    let mut documented = BTreeSet::new();
    for line in lib.lines().filter(|line| line.starts_with("//! | ") && line.contains('`')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (floor, modules, half) = (cells[1], cells[2], cells[3]);
        for module in modules.split_whitespace() {
            let module = module.trim_matches('`');
            let (_, known_floor, known_half) = row(module).unwrap_or_else(|| unknown(module));
            assert_eq!(floor.parse(), Ok(known_floor), "{module}");
            assert_eq!(half, if known_half == Thinking { "thinking" } else { "acting" }, "{module}");
            documented.insert(module.to_owned());
        }
    }
    let declared: BTreeSet<String> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, declared, "documented on the left, declared on the right");
}

#[test]
fn the_scan_flags_what_it_should() {
    for (path, line, complaint) in [
        ("wire/stun.rs", "use crate::stun::client;", "floor 2 uses `stun` on floor 3"),
        ("stun/client.rs", "use crate::punch::plan;", "floor 3 uses `punch` on floor 3"),
        ("wire/a.rs", "fn f() { crate :: node::x() }", "floor 2 uses `node` on floor 5"),
        ("wire/a.rs", "use super::super::node;", "floor 2 uses `node` on floor 5"),
        ("wire/mod.rs", "use super::path::leg;", "floor 2 uses `path` on floor 4"),
        ("wire/a.rs", "use crate::sys::option;", "thinks, but uses `sys`, which acts"),
        ("path/mod.rs", "use crate::device::Tun;", "thinks, but uses `device`, which acts"),
        ("wire/a.rs", "use crate::nowhere::x;", "uses `nowhere`, which has no floor"),
        ("wire/a.rs", "use crate::{base, node};", "imports a group"),
        ("wire/a.rs", "use crate::base::{addr, id};", "imports a group"),
        ("node/a.rs", "let t = Instant::now();", "thinks, but names `Instant::now`"),
        ("node/a.rs", "use std::time::SystemTime;", "thinks, but names `SystemTime`"),
        ("node/a.rs", "use std::fs;", "thinks, but names `std::fs`"),
        ("node/a.rs", "tokio::spawn(x);", "thinks, but names `tokio::`"),
        ("node/a.rs", "let s = \"//\"; libc::read(0);", "thinks, but names `libc::`"),
        ("node/a.rs", "let s = r#\"\"\"#; libc::read(0);", "thinks, but names `libc::`"),
        ("node/a.rs", "let c = '\"'; libc::read(0); // \"", "thinks, but names `libc::`"),
        ("node/a.rs", "#[cfg(test)]\nmod tests { }\nuse std::env;", "thinks, but names `std::env`"),
        ("io/a.rs", "unsafe { x() }", "`unsafe` outside of src/sys"),
        ("lost/a.rs", "fn f() {}", "`lost` has no floor"),
    ] {
        let found = complaints(Path::new(path), line, false);
        assert!(found.len() == 1 && found[0].contains(complaint), "{path}: {line}\n{found:?}");
    }
}

#[test]
fn the_scan_leaves_alone_what_is_right() {
    for (path, text) in [
        ("stun/client.rs", "use crate::wire::stun::Message;\nuse crate::stun::server;"),
        ("wire/stun/codec.rs", "use super::super::frame; use super::Message;"),
        ("wire/a.rs", "// crate::node and SystemTime\n/* crate::node /* libc:: */ unsafe */"),
        ("wire/a.rs", "/// [`crate::node::Node`]\nfn f() { let s = \"crate::node unsafe tokio::\"; }"),
        ("wire/a.rs", "fn f<'a>(x: &'a str) -> char { '\\'' }"),
        ("wire/a.rs", "#[cfg(test)]\nmod tests { fn origin() { Instant::now(); { } } }"),
        ("wire/a.rs", "fn mylibc::x() {} #![deny(unsafe_code)] struct UnixTime; use ring::rand;"),
        ("engine/clock.rs", "Instant::now(); use crate::node::Node; tokio::spawn();"),
        ("sys/a.rs", "unsafe { libc::read(0) }"),
        ("io/a.rs", "use crate::sys::x; use std::os::fd::OwnedFd;"),
        ("main.rs", "fn main() { ntcp_overlay::cli::main() }"),
    ] {
        let found = complaints(Path::new(path), text, false);
        assert!(found.is_empty(), "{path}: {text}\n{found:?}");
    }
    let worldly_test = complaints(Path::new("node/tests.rs"), "Instant::now();", true);
    assert!(worldly_test.is_empty(), "{worldly_test:?}");
    let high_test = complaints(Path::new("wire/tests.rs"), "use crate::node::Node;", true);
    assert_eq!(high_test.len(), 1, "tests respect the floors too");
}

struct Source {
    path: PathBuf,
    text: String,
    is_test: bool,
}

/// All files under `src` but `lib.rs`; those that a `#[cfg(test)] mod name;` declares are tests.
fn sources() -> Vec<Source> {
    let (mut files, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") && path != root().join("lib.rs") {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 50, "the scan found the source: {} files", files.len());
    let tests: BTreeSet<PathBuf> = files.iter().flat_map(|path| declared_tests(path)).collect();
    files.sort();
    files
        .into_iter()
        .map(|path| Source {
            text: read(&path),
            is_test: tests.contains(&path),
            path: path.strip_prefix(root()).expect("found under src").to_owned(),
        })
        .collect()
}

/// The files of the test modules that `path` declares.
fn declared_tests(path: &Path) -> Vec<PathBuf> {
    let text = blank(&read(path));
    let folder = path.parent().expect("a file lies in a folder");
    let folder = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod") | None => folder.to_owned(),
        Some(stem) => folder.join(stem),
    };
    let declared = text.split("#[cfg(test)]").skip(1).filter_map(|after| {
        let item = after.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        item.strip_prefix("mod ")?.split_once(';').map(|(name, _)| name.trim().to_owned())
    });
    declared
        .filter(|name| name.chars().all(is_ident))
        .flat_map(|name| [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")])
        .collect()
}

/// What is wrong with the file at `path` (relative to `src`).
fn complaints(path: &Path, text: &str, is_test: bool) -> Vec<String> {
    let components: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let module = components[0].as_str();
    let Some((_, floor, half)) = row(module) else {
        return vec![format!("{}: `{module}` has no floor", path.display())];
    };
    let depth = components.iter().filter(|part| *part != "mod").count();
    let code = blank(text);
    let worldly_code = if is_test { String::new() } else { without_tests(&code) };
    let mut wrong = Vec::new();
    for used in used_modules(&code, depth) {
        wrong.extend(match row(&used) {
            _ if used == "{" => Some("imports a group; one line per item".to_owned()),
            _ if used == module => None,
            None => Some(format!("uses `{used}`, which has no floor")),
            Some((_, _, Acting)) if half == Thinking => {
                Some(format!("thinks, but uses `{used}`, which acts"))
            }
            Some((_, other, _)) if other >= floor => {
                Some(format!("on floor {floor} uses `{used}` on floor {other}"))
            }
            Some(_) => None,
        });
    }
    if half == Thinking {
        let named = WORLDLY.iter().filter(|name| names(&worldly_code, name));
        wrong.extend(named.map(|name| format!("thinks, but names `{name}`")));
    }
    if module != "sys" && names(&code, "unsafe") {
        wrong.push("`unsafe` outside of src/sys".to_owned());
    }
    wrong.into_iter().map(|what| format!("src/{}: {what}", path.display())).collect()
}

/// The first component of every path from the crate's root; `{` for a group of imports.
fn used_modules(code: &str, depth: usize) -> BTreeSet<String> {
    let words = words(code);
    let mut used = BTreeSet::new();
    for (n, word) in words.iter().enumerate() {
        let after = |k: usize| words.get(n + k).map_or("", |word| *word);
        if *word == "crate" && after(1) == "::" {
            used.insert(after(2).to_owned());
            used.extend(group_in_path(&words[n..]));
        }
        let begins = *word == "super" && (n == 0 || words[n - 1] != "::");
        if begins {
            let supers = (0..).take_while(|k| after(2 * k) == "super" && after(2 * k + 1) == "::").count();
            let next = after(2 * supers);
            if supers >= depth && row(next).is_some() {
                used.insert(next.to_owned());
            }
        }
    }
    used.retain(|word| word == "{" || word.starts_with(is_ident));
    used
}

/// `crate::a::{...}` anywhere in the path that `words` begin with.
fn group_in_path(words: &[&str]) -> Option<String> {
    let end = words.chunks(2).position(|pair| pair.get(1) != Some(&"::"))?;
    (*words.get(2 * end)? == "{" && end > 0).then(|| "{".to_owned())
}

/// Identifiers, `::`, and every other visible character by itself.
fn words(code: &str) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), code.trim_start());
    while let Some(first) = rest.chars().next() {
        let len = if is_ident(first) {
            rest.find(|c| !is_ident(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        words.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    words
}

/// Whether `name` stands in `code`, and not as the end or beginning of a longer word.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        let open_ended = name.ends_with([':', '!']);
        !before.is_some_and(is_ident) && (open_ended || !after.is_some_and(is_ident))
    })
}

/// The same text with comments, strings and characters turned into blanks.
fn blank(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after_ident = out.chars().next_back().is_some_and(is_ident);
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(len) = raw_string(rest).filter(|_| !after_ident) {
            len
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' && is_char_literal(rest) {
            quoted(rest, '\'')
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        out.extend(rest[..len].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[len..];
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of `r"..."`, `r#"..."#`, `br"..."`, if one begins here.
fn raw_string(text: &str) -> Option<usize> {
    let opened = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = opened.len() - opened.trim_start_matches('#').len();
    let body = opened[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close).map_or(body.len(), |at| at + close.len());
    Some(text.len() - body.len() + end)
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `'x'` or `'\...'`, but not a lifetime.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// The same code without `#[cfg(test)] mod name { ... }`.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        out.push_str(before);
        let opens = after.find(['{', ';']).unwrap_or(after.len());
        rest = if after[opens..].starts_with('{') {
            &after[opens + braces(&after[opens..])..]
        } else {
            &after[opens..]
        };
    }
    out + rest
}

/// The length of the block that begins here.
fn braces(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn row(module: &str) -> Option<(&'static str, u8, Half)> {
    FLOORS.into_iter().find(|(name, ..)| *name == module)
}

fn unknown(module: &str) -> (&'static str, u8, Half) {
    unreachable!("`{module}` stands in the documentation and not in the table")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("source files are UTF-8")
}
