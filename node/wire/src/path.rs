//! Which strings are znode paths.

/// Checks that a string is an absolute znode path that ZooKeeper accepts.
///
/// The root is `/`. Any other path has no trailing slash and no node named nothing, `.` or `..`.
/// Forbidden characters are NUL, U+0001-001F, U+007F-009F, U+D800-F8FF and U+FFF0-FFFF, counted in
/// UTF-16 as Java does: every character above U+FFFF is therefore forbidden too.
pub fn validate_path(path: &str) -> Result<(), PathError> {
    let nodes = nodes_of(path)?;
    if nodes.is_empty() {
        return Ok(());
    }
    if nodes.ends_with('/') {
        return Err(PathError::TrailingSlash);
    }
    nodes.split('/').try_for_each(validate_node)?;
    validate_characters(path)
}

/// Checks the path of a sequential create: the path that results must pass [`validate_path`].
///
/// The digits that the server appends make any last node a good name, so `/queue/` is allowed here.
pub fn validate_sequential_path(path: &str) -> Result<(), PathError> {
    let nodes = nodes_of(path)?;
    if let Some((parents, _)) = nodes.rsplit_once('/') {
        parents.split('/').try_for_each(validate_node)?;
    }
    validate_characters(path)
}

/// Why a string is not a znode path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The empty string.
    #[error("path is empty")]
    Empty,
    /// No leading slash.
    #[error("path must start with /")]
    Relative,
    /// A slash at the end of a path that is not the root.
    #[error("path must not end with /")]
    TrailingSlash,
    /// Two slashes in a row.
    #[error("path has an empty node name")]
    EmptyNode,
    /// A node named `.` or `..`.
    #[error("path has a node named . or ..")]
    DotNode,
    /// A character that ZooKeeper does not allow.
    #[error("path has the forbidden character {0:?}")]
    Character(char),
}

fn nodes_of(path: &str) -> Result<&str, PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    path.strip_prefix('/').ok_or(PathError::Relative)
}

fn validate_node(name: &str) -> Result<(), PathError> {
    match name {
        "" => Err(PathError::EmptyNode),
        "." | ".." => Err(PathError::DotNode),
        _ => Ok(()),
    }
}

fn validate_characters(path: &str) -> Result<(), PathError> {
    match path.chars().find(|&character| is_forbidden(character)) {
        Some(character) => Err(PathError::Character(character)),
        None => Ok(()),
    }
}

fn is_forbidden(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..=char::MAX
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_judged_as_zookeeper_does() {
        for good in
            ["/", "/a", "/a/b", "/a./.b/..c/...", "/\u{a0}", "/\u{d7ff}", "/\u{f900}", "/\u{ffef}", "/ "]
        {
            assert_eq!(validate_path(good), Ok(()), "{good:?}");
        }
        for (bad, reason) in [
            ("", PathError::Empty),
            ("a", PathError::Relative),
            ("/a/", PathError::TrailingSlash),
            ("//", PathError::TrailingSlash),
            ("//a", PathError::EmptyNode),
            ("/a//b", PathError::EmptyNode),
            ("/.", PathError::DotNode),
            ("/..", PathError::DotNode),
            ("/a/./b", PathError::DotNode),
            ("/a/..", PathError::DotNode),
            ("/a\0", PathError::Character('\0')),
            ("/\u{1}", PathError::Character('\u{1}')),
            ("/a\u{1f}b", PathError::Character('\u{1f}')),
            ("/\u{7f}", PathError::Character('\u{7f}')),
            ("/\u{9f}", PathError::Character('\u{9f}')),
            ("/\u{e000}", PathError::Character('\u{e000}')),
            ("/\u{f8ff}", PathError::Character('\u{f8ff}')),
            ("/\u{fff0}", PathError::Character('\u{fff0}')),
            ("/\u{1f600}", PathError::Character('\u{1f600}')),
        ] {
            assert_eq!(validate_path(bad), Err(reason), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_sequential_path_is_judged_by_what_it_becomes(path in "/?[a./\u{1}\u{e000}]{0,6}") {
            let judged = validate_sequential_path(&path).is_ok();
            proptest::prop_assert_eq!(judged, validate_path(&format!("{path}1")).is_ok());
        }
    }
}
