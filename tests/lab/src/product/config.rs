//! A configuration that every member of a test run reads, beside its own: how the whole suite is run with another back end.

use std::env;
use std::fs;

use anyhow::Context;
use anyhow::Result;

use crate::ns::Namespace;

/// Names a file whose keys all members get, unless their own configuration has them.
const VARIABLE: &str = "NTCP_LAB_CONFIG";

/// The words with which a member is to be started where the run has a configuration of its own.
pub(super) fn with_common(on: &Namespace, words: &[&str]) -> Result<Vec<String>> {
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let Ok(common) = env::var(VARIABLE) else { return Ok(words) };
    let common = fs::read_to_string(&common).with_context(|| format!("{VARIABLE} names {common}"))?;
    let place = words.iter().position(|word| word == "--config").map(|at| at + 1);
    let own = match place.and_then(|at| words.get(at)) {
        Some(file) => fs::read_to_string(file)?,
        None => String::new(),
    };
    let file = on.files()?.join("common.toml");
    fs::write(&file, joined(&own, &common))?;
    let file = file.to_str().context("a path of the lab is not UTF-8")?.to_owned();
    match place.and_then(|at| words.get_mut(at)) {
        Some(word) => *word = file,
        None => words.extend(["--config".to_owned(), file]),
    }
    Ok(words)
}

/// One file with the keys of `own`, and those of `common` that it has not.
fn joined(own: &str, common: &str) -> String {
    let key = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
    let mut lines: Vec<String> = own.lines().map(str::to_owned).collect();
    let mut table = String::new();
    for line in common.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with('[') {
            line.clone_into(&mut table);
            continue;
        }
        let start = lines.iter().position(|own| own.trim() == table);
        let at = start.map_or(lines.len(), |at| at + 1);
        let body = lines.iter().skip(at).take_while(|own| !own.starts_with('['));
        if body.clone().any(|own| key(own) == key(line)) {
            continue;
        }
        if start.is_none() {
            lines.push(table.clone());
        }
        lines.insert(at + usize::from(start.is_none()), line.to_owned());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_gets_the_common_keys_that_it_has_not_set_itself() {
        let common = "[member]\noffload = false\nudp = false\n";
        for (own, expected) in [
            ("", "[member]\nudp = false\noffload = false\n"),
            (
                "[broker]\nenabled = true\n",
                "[broker]\nenabled = true\n[member]\nudp = false\noffload = false\n",
            ),
            ("[member]\noffload = true\n", "[member]\nudp = false\noffload = true\n"),
            (
                "[member]\nname = \"a\"\n\n[relay]\noffload = 1\n",
                "[member]\nudp = false\noffload = false\nname = \"a\"\n\n[relay]\noffload = 1\n",
            ),
        ] {
            assert_eq!(joined(own, common), expected, "{own}");
        }
    }
}
