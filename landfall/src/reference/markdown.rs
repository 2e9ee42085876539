//! Tables in Markdown.

/// A table. `columns` are the titles of its columns.
pub(super) fn table<const N: usize>(columns: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&columns.map(str::to_owned)) + &"|---".repeat(N) + "|\n";
    for row in rows {
        text += &line(&row.map(|cell| escape(&cell)));
    }
    text
}

/// `text` as one line of a table.
fn escape(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// `text` between backquotes.
pub(super) fn code(text: &str) -> String {
    format!("`{text}`")
}

#[test]
fn cells_are_lines_without_separators() {
    let rows = [[code("a"), "two\n  lines | one".to_owned()]];
    assert_eq!(table(["x", "y"], rows), "| x | y |\n|---|---|\n| `a` | two lines \\| one |\n");
}
