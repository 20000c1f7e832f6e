//! Every case is whole: steps, and what is expected of them.

use crate::tidy::root;
use std::collections::BTreeSet;
use std::fs;

#[test]
fn every_case_has_its_steps_and_what_they_should_give() {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root().join("conformance/cases")).expect("the cases are there") {
        let path = entry.expect("the folder can be read").path();
        for file in ["steps.txt", "expected"] {
            assert!(path.join(file).is_file(), "{} has no {file}", path.display());
        }
        names.insert(path.file_name().expect("a case has a name").to_string_lossy().into_owned());
    }
    let skips = fs::read_to_string(root().join("conformance/skips.tsv")).expect("the list is there");
    for line in skips.lines().filter(|l| !l.starts_with('#')) {
        let (name, reason) = line.split_once('\t').expect("a skip is a name, a tab and a reason");
        assert!(names.contains(name), "skips.tsv names {name}, which is no case");
        assert!(reason.len() > 10, "skips.tsv gives no reason for {name}");
    }
}

#[test]
fn nothing_of_the_recording_machine_is_in_what_is_expected() {
    for entry in fs::read_dir(root().join("conformance/cases")).expect("the cases are there") {
        let path = entry.expect("the folder can be read").path().join("expected");
        let text = fs::read_to_string(&path).expect("what is expected is text");
        for mark in ["/tmp/", "nginx/1.", "[timeout]"] {
            assert!(!text.contains(mark), "{} holds {mark}", path.display());
        }
    }
}

#[test]
fn the_recipe_is_what_is_recorded() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("it is there");
    let recipe = read("fixtures/cors/nginx.conf");
    let ports = ["8080", "3000"].iter().fold(recipe, |text, port| {
        text.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:%%PORT_{port}%%"))
    });
    assert_eq!(
        read("conformance/cases/cors/nginx.conf"),
        ports,
        "put the recipe into the case and record it anew"
    );
}
