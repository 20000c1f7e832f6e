//! The floors of the house, the size of its files, and no trace of the machine that they were written on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From the ground up: each may use those before it.
const FLOORS: [&str; 5] = ["weir-syntax", "weir-ir", "weir-engine", "weir-modules", "weir"];

/// May be used for tests only, by anybody.
const TESTKIT: &str = "weir-testkit";

const LONGEST_FILE: usize = 900;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The crates of the house that a manifest names, by section.
fn house_dependencies(manifest: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let (table, dependency) =
                name.rsplit_once("dependencies.").map_or((name, None), |(t, d)| (t, Some(d.to_owned())));
            section = if dependency.is_some() { format!("{table}dependencies") } else { name.to_owned() };
            found.entry(section.clone()).or_default().extend(dependency);
        } else if section.ends_with("dependencies") {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default().trim_matches('"');
            found.entry(section.clone()).or_default().push(name.to_owned());
        }
    }
    found.retain(|section, _| section.ends_with("dependencies"));
    found.values_mut().for_each(|names| names.retain(|n| n.starts_with("weir")));
    found
}

fn package_name(manifest: &str) -> &str {
    let line = manifest.lines().find(|l| l.starts_with("name")).expect("a package has a name");
    line.split('"').nth(1).expect("a name is quoted")
}

/// What is wrong with the dependencies of one manifest.
fn broken_floors(manifest: &str) -> Vec<String> {
    let name = package_name(manifest);
    let floor = FLOORS.iter().position(|f| *f == name);
    let mut broken = Vec::new();
    for (section, dependencies) in house_dependencies(manifest) {
        let tests_only = section.ends_with("dev-dependencies");
        for dependency in dependencies {
            let theirs = FLOORS.iter().position(|f| *f == dependency);
            let allowed = match (floor, theirs) {
                _ if dependency == TESTKIT => tests_only,
                (Some(ours), Some(theirs)) => theirs < ours,
                // The testkit stands beside the engine and never sees a feature.
                (None, Some(theirs)) if name == TESTKIT => theirs <= 2,
                _ => tests_only,
            };
            if !allowed {
                broken.push(format!("{name} must not use {dependency} in [{section}]"));
            }
        }
    }
    broken
}

#[test]
fn each_floor_stands_on_lower_ones_only() {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("crates")).expect("the crates are there") {
        let path = entry.expect("the folder can be read").path().join("Cargo.toml");
        let Ok(manifest) = fs::read_to_string(&path) else { continue };
        names.push(package_name(&manifest).to_owned());
        assert_eq!(broken_floors(&manifest), [""; 0]);
    }
    for name in FLOORS.into_iter().chain([TESTKIT]) {
        assert!(names.iter().any(|n| n == name), "{name} is gone from crates/");
    }
}

#[test]
fn a_broken_floor_is_seen() {
    #[track_caller]
    fn check(name: &str, text: &str, broken: usize) {
        let manifest = format!("[package]\nname = \"{name}\"\n{text}");
        assert_eq!(broken_floors(&manifest).len(), broken, "{manifest}");
    }
    check("weir-ir", "[dependencies]\nweir-syntax.workspace = true\n", 0);
    check("weir-ir", "[dependencies]\nweir-engine = { workspace = true }\n", 1);
    check("weir-engine", "[dependencies.weir-modules]\nworkspace = true\n", 1);
    check("weir-modules", "[dependencies]\nweir-testkit.workspace = true\n", 1);
    check("weir-modules", "[dev-dependencies]\nweir-testkit.workspace = true\n", 0);
    check("weir-engine", "[target.'cfg(unix)'.dependencies]\nweir.workspace = true\n", 1);
    check("weir-testkit", "[dependencies]\nweir-modules.workspace = true\n", 1);
}

/// Text files that git knows, or would know once they are added.
fn tracked() -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("names are text");
    let text = |name: &str| fs::read_to_string(root().join(name)).ok();
    names.split('\0').filter_map(|name| Some((name.to_owned(), text(name)?))).collect()
}

#[test]
fn no_file_does_two_jobs() {
    let files = tracked();
    let rust: Vec<_> = files.iter().filter(|(name, _)| name.ends_with(".rs")).collect();
    assert!(rust.len() > 10, "git names hardly any source");
    for (name, text) in rust {
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{name} has {lines} lines: which of its jobs moves out?");
    }
}

#[test]
fn no_path_of_anybodys_machine() {
    let homes = ["/home/", "/Users/", "/root/", "/work/"];
    for (name, text) in tracked() {
        // This file has to name them.
        if name == "conformance/tests/it/tidy.rs" || name == "Cargo.lock" {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            let at_home = homes.iter().any(|home| {
                line.match_indices(home).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|c| c.is_whitespace() || "\"'`=:(".contains(c))
                })
            });
            assert!(!at_home, "{name}:{number}: {line}");
        }
    }
}
