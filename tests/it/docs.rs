//! What the documentation names exists: a table of tests that are gone would promise nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
}

/// What stands between two of these marks, if `is_name` says so.
fn named<'a>(text: &'a str, mark: char, is_name: fn(&str) -> bool) -> BTreeSet<&'a str> {
    let between = |line: &'a str| line.split(mark).skip(1).step_by(2);
    text.lines().flat_map(between).filter(|name| is_name(name)).collect()
}

#[test]
fn tests_and_places_that_known_bugs_names_exist() {
    let text = fs::read_to_string(root().join("docs/KNOWN_BUGS.md")).unwrap();
    let mut files = Vec::new();
    ["src", "tests"].iter().for_each(|dir| sources(&root().join(dir), &mut files));
    let code: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let is_test = |name: &str| name.contains('_') && !name.contains(['.', ':', ' ']);
    let is_place = |name: &str| name.contains('.') && !name.contains(' ');
    let tests = named(&text, '`', is_test);
    let places = named(&text, '"', is_place);
    assert!(tests.len() > 50 && places.len() > 12, "{tests:?} {places:?}");
    for name in tests {
        assert!(code.contains(&format!("fn {name}(")), "there is no test {name}");
    }
    for place in places {
        assert!(code.contains(&format!("\"{place}\"")), "there is no place {place}");
    }
}
