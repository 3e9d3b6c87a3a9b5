//! The source text itself: imports point one way, `unsafe` is where it was allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module of `src/`, without comments and without what is only for tests.
pub struct Source {
    /// Relative to `src/`.
    pub path: PathBuf,
    /// The path in the crate: `["table", "block"]`.
    pub module: Vec<String>,
    pub code: String,
}

/// Every module of the library. The program in `cli/` is a user of it like any other.
pub fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut dirs = vec![src.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("cli") {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let texts: Vec<(PathBuf, String)> = files
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    let mut for_tests = BTreeSet::new();
    for (path, text) in &texts {
        let folder = match path.file_stem().unwrap().to_str().unwrap() {
            "mod" | "lib" => path.parent().unwrap().to_path_buf(),
            stem => path.with_file_name(stem),
        };
        for name in modules_for_tests(text) {
            for_tests.insert(folder.join(format!("{name}.rs")));
            for_tests.insert(folder.join(name).join("mod.rs"));
        }
    }
    let mut sources = Vec::new();
    for (path, text) in texts {
        if for_tests.contains(&path) {
            continue;
        }
        let path = path.strip_prefix(&src).unwrap().to_path_buf();
        let mut module: Vec<String> = path
            .with_extension("")
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        module.pop_if(|last| last == "mod" || last == "lib");
        sources.push(Source { path, module, code: code(&text) });
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 40, "found only {}", sources.len());
    sources
}

/// Names of the modules in files of their own that are declared under `#[cfg(test)]`.
fn modules_for_tests(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    let names = declared.filter_map(|pair| pair[1].strip_suffix(';')?.split("mod ").nth(1));
    names.collect()
}

/// The text without comments, up to the tests at its end.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let trimmed = line.trim();
        let opens_tests = |next: &&str| next.contains("mod ") && next.ends_with('{');
        if line == "#[cfg(test)]" && lines.peek().is_some_and(opens_tests) {
            break;
        }
        if !trimmed.starts_with("//") {
            code.push_str(line.split(" // ").next().unwrap_or(line));
            code.push('\n');
        }
    }
    code
}

/// The modules at the top, in the order of `lib.rs`: each may import from those before it.
fn layers() -> Vec<String> {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let code = code(&lib.unwrap());
    let declared = code.lines().filter_map(|line| line.strip_suffix(';')?.split("mod ").nth(1));
    let layers: Vec<String> = declared.map(str::to_string).collect();
    assert_eq!(layers.first().map(String::as_str), Some("coding"));
    layers
}

/// The paths that follow `crate::` in this code, as far as they are names.
fn imports(code: &str) -> Vec<Vec<&str>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut imports = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue;
        }
        let mut rest = &code[at + found.len()..];
        let mut path = Vec::new();
        loop {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            if end == 0 {
                break;
            }
            path.push(&rest[..end]);
            match rest[end..].strip_prefix("::") {
                Some(more) => rest = more,
                None => break,
            }
        }
        imports.push(path);
    }
    imports
}

#[test]
fn every_module_imports_only_from_layers_above_it_in_lib_rs() {
    let layers = layers();
    let level = |name: &str| layers.iter().position(|layer| layer == name);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| !source.module.is_empty()) {
        let own = level(&source.module[0]).expect("every module is declared in lib.rs");
        for path in imports(&source.code) {
            seen += 1;
            let at = source.path.display();
            match path.first().and_then(|first| level(first)) {
                Some(theirs) if theirs <= own => {}
                Some(_) => wrong.push(format!("{at}: {} is below it", path.join("::"))),
                None => wrong.push(format!("{at}: crate::{} is no full path", path.join("::"))),
            }
        }
    }
    assert!(seen > 200, "only {seen} imports were seen");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn byte_formats_do_not_know_each_other() {
    let formats = ["batch", "record", "table"];
    for source in sources() {
        let Some(own) = source.module.first().filter(|own| formats.contains(&own.as_str())) else {
            continue;
        };
        for path in imports(&source.code) {
            let sibling = path.first().is_some_and(|other| formats.contains(other) && other != own);
            assert!(!sibling, "{} imports {}", source.path.display(), path.join("::"));
        }
    }
}

/// Folders whose files know each other, and why that is better than the alternative.
const CIRCLES: [(&str, &str); 3] = [
    ("db", "handles and engine are one thing, split into files by what the user calls"),
    ("shard", "as db: handles and what they share, split into files by what the user calls"),
    ("write", "the syncer's steps are the pipeline's: they need its ring, logs and breaker"),
];

#[test]
fn files_of_a_folder_do_not_import_in_circles() {
    let mut folders: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for source in sources() {
        let [folder, file] = &source.module[..] else { continue };
        let imported = folders.entry(folder.clone()).or_default().entry(file.clone()).or_default();
        for path in imports(&source.code) {
            if path.len() > 2 && path[0] == *folder && path[1] != *file {
                imported.insert(path[1].to_string());
            }
        }
    }
    assert!(folders.len() > 8, "only {} folders", folders.len());
    for (folder, files) in &folders {
        if CIRCLES.iter().any(|(excepted, _)| excepted == folder) {
            continue;
        }
        // Files whose imports are all settled are settled, until none is left, or a circle.
        let mut open: BTreeSet<&String> = files.keys().collect();
        loop {
            let settled = |file: &&&String| files[**file].iter().all(|other| !open.contains(other));
            let next: Vec<&String> = open.iter().filter(settled).copied().collect();
            if next.is_empty() {
                break;
            }
            open.retain(|file| !next.contains(file));
        }
        assert!(open.is_empty(), "in {folder}/ these import each other: {open:?}");
    }
}

#[test]
fn unsafe_is_only_where_it_was_lifted_with_a_reason() {
    let mut lifted = 0;
    for source in sources() {
        let words = source.code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let count = words.filter(|word| *word == "unsafe").count();
        let expects = source.code.contains("expect(unsafe_code");
        assert!(count == 0 || expects, "{} has unsafe code", source.path.display());
        assert!(count > 0 || !expects, "{} has none", source.path.display());
        assert!(!source.code.contains("allow(unsafe_code"), "{}", source.path.display());
        lifted += usize::from(expects);
    }
    assert!(lifted > 0);
}

#[test]
fn this_test_sees_what_it_looks_for() {
    let text = "use crate::a::b;\n// crate::no\nfn f() { crate::c::D::new() } // crate::no\n\
                #[cfg(test)]\nmod tests {\n use crate::no;\n}\n";
    assert_eq!(imports(&code(text)), [vec!["a", "b"], vec!["c", "D", "new"]]);
    let text = "#[cfg(test)]\npub(crate) mod fixture;\n#[cfg(test)]\nmod tests;\nmod real;\n";
    assert_eq!(modules_for_tests(text), ["fixture", "tests"]);
}
