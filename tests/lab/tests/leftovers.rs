//! A lab leaves nothing behind, whether it ends or is killed.

use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use ntcp_lab::Internet;
use ntcp_lab::Lab;
use ntcp_lab::Link;
use ntcp_lab::interrupt;
use ntcp_lab::lab;
use ntcp_lab::lab::say;

/// How many crashes, where `NTCP_LAB_CRASHES` says nothing else.
const CRASHES: u32 = 8;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_lab_takes_everything_with_it() {
    lab::test(|_| {
        let lab = Lab::new()?;
        let net = Internet::new(&lab)?;
        let a = net.host("a", &Link::delayed(ms(1)))?;
        let running = a.ns.spawn(&["sleep", "100"])?;
        let (id, dir, pid) = (lab.id().to_owned(), lab.dir().to_owned(), running.pid());
        ensure!(spaces(&id) == 2);
        drop(net);
        drop(lab);
        drop(running);
        ensure!(!dir.exists() && !Path::new(&format!("/proc/{pid}")).exists() && spaces(&id) == 0);
        Ok(())
    });
}

#[test]
fn what_a_killed_lab_leaves_is_removed_by_the_next_clean_and_nothing_else() {
    lab::test(|mine| {
        mine.machine("bystander")?;
        let tool = env!("CARGO_BIN_EXE_ntcp-lab");
        let mut victim = Command::new(tool).arg("hold").stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(victim.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let (id, busy) = line.trim().split_once(' ').context("hold prints its id and a process id")?;
        ensure!(
            spaces(id) == 6 && Path::new(&format!("/proc/{busy}")).exists(),
            "nothing was built: {line:?}"
        );
        victim.kill()?;
        victim.wait()?;
        ensure!(Command::new(tool).arg("clean").stdout(Stdio::null()).status()?.success());
        ensure!(spaces(id) == 0, "namespaces of the dead lab remain");
        ensure!(spaces(mine.id()) == 1 && mine.dir().exists(), "a living lab was removed");
        ensure!(!Path::new(&format!("/run/ntl/{id}")).exists(), "the record of the dead lab remains");
        // A zombie has no command line: who reaps it is not the lab's business.
        let command = std::fs::read(format!("/proc/{busy}/cmdline")).unwrap_or_default();
        ensure!(command.is_empty(), "a process of the dead lab still runs");
        Ok(())
    });
}

#[test]
fn crashes_in_a_row_at_any_moment_leave_nothing_after_the_next_clean() {
    lab::test(|mine| {
        mine.machine("bystander")?;
        let crashes = std::env::var("NTCP_LAB_CRASHES").ok().and_then(|text| text.parse().ok());
        let crashes = crashes.unwrap_or(CRASHES);
        let tool = env!("CARGO_BIN_EXE_ntcp-lab");
        let (mut found, mut labs) = (0, 0);
        for round in 0..crashes {
            let mut victim = Command::new(tool).arg("hold").stdout(Stdio::null()).spawn()?;
            // From before its first step until after its last, in an order that jumps.
            thread::sleep(ms(u64::from(round * 37 % 61 * 10)));
            victim.kill()?;
            // Every other one stays a zombie while others clean.
            if round % 2 == 0 {
                victim.wait()?;
            } else {
                interrupt::wait_for("the victim's end", ms(10_000), || {
                    let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.id()))?;
                    Ok(stat.contains(") Z ").then_some(()))
                })?;
            }
            let left = leftovers(victim.id())?;
            found += left.len();
            labs += u32::from(!left.is_empty());
            // Now and then two crashes in a row before anybody cleans.
            if round % 3 != 0 || round + 1 == crashes {
                ensure!(Command::new(tool).arg("clean").stdout(Stdio::null()).status()?.success());
                let left = leftovers(victim.id())?;
                ensure!(left.is_empty(), "crash {round} left {left:#?}");
            }
            victim.wait()?;
        }
        say(&format!("{crashes} crashes: {labs} left {found} things, all of them removed"));
        ensure!(labs > 0, "no crash left anything: nothing was tested");
        ensure!(astray()?.is_empty(), "on the machine itself: {:#?}", astray()?);
        ensure!(spaces(mine.id()) == 1 && mine.dir().exists(), "a living lab was removed");
        Ok(())
    });
}

/// Everything that a lab of this process could have left: namespaces, files, directories and programs.
fn leftovers(owner: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    // What a lab is named after begins with its owner's process id in base 36.
    let mut id = String::new();
    let mut number = owner;
    while number > 0 {
        id.insert(0, char::from_digit(number % 36, 36).context("a digit")?);
        number /= 36;
    }
    for (dir, prefixes) in [
        ("/run/netns", vec![format!("ntl-{id}")]),
        ("/etc/netns", vec![format!("ntl-{id}")]),
        ("/run/ntl", vec![id.clone(), format!(".{owner}.")]),
    ] {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        found.extend(
            names
                .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
                .map(|name| format!("{dir}/{name}")),
        );
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let marked = String::from_utf8_lossy(&environment).contains(&format!("NTL_LAB={id}"));
        if marked {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!("{}: {}", entry.path().display(), String::from_utf8_lossy(&command)));
        }
    }
    Ok(found)
}

/// What of the machine's own network looks as if a lab had put it there.
fn astray() -> Result<Vec<String>> {
    let said = |program: &str, words: &[&str]| -> Result<String> {
        Ok(String::from_utf8_lossy(&Command::new(program).args(words).output()?.stdout).into_owned())
    };
    let text = said("nft", &["list", "tables"])? + &said("ip", &["-br", "link"])? + &said("ip", &["rule"])?;
    let ours = |line: &&str| {
        let name = line.split(['@', ' ']).next().unwrap_or_default();
        line.contains(" ntl") || line.contains("lookup 77") || ["wan", "lan", "p1", "hp0"].contains(&name)
    };
    Ok(text.lines().filter(ours).map(str::to_owned).collect())
}

/// How many namespaces of a lab exist.
fn spaces(id: &str) -> usize {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("ntl-{id}-"))).count()
}
