# Doxygen's input filter for headers: turns our own way to write documentation into Doxygen's.
# SPDX-License-Identifier: MIT
#   The head of a file, its `//` lines before #pragma once, is the documentation of the file, as it stands.
#   `/// Word   text` of the template (Shapes, Requires, Semantics, Cost, ...) begins a paragraph of that name, which the
#   lines below it continue; Shapes and Options are tables, whose columns are kept.
#   What Doxygen would take for a tag or a link is text, but for `code` and \tparam.
#   The inline namespace that names the instruction set is left out.
# Written as /** */: in /// Doxygen does not take the slashes off a table's lines.

# Text without markup.
function plain(text,    parts, count, i, joined) {
  count = split(text, parts, "`")
  for (i = 1; i <= count; i++) {
    if (i % 2 == 1) {
      gsub(/[<>&#@%]/, "\\\\&", parts[i])
      gsub(/ al\. /, " al.\\ ", parts[i])  # no end of a sentence
    }
    joined = joined (i > 1 ? "`" : "") parts[i]
  }
  return joined
}
function close_table() {
  if (table) print "\\endverbatim"
  table = 0
}
function close_block() {
  close_table()
  if (block) print "*/"
  block = 0
}

FNR == 1 { head = 1; print "/** \\file\n\\verbatim"; sub(/^\/\/ [^:]*: /, "// ") }
head && /^\/\/ SPDX/ { next }
head && /^\/\// { print substr($0, 4); next }
head { head = 0; print "\\endverbatim\n*/" }

/^inline namespace ATTN_ABI/ || /^}  \/\/ namespace ATTN_ABI/ { next }

match($0, /^ *\/\/\/( |$)/) {
  text = substr($0, RLENGTH + 1)
  if (!block) print "/**"
  block = 1
  if (match(text, /^(Shapes|Options|Requires|Semantics|Cost|Accuracy|Bits|Reference)  +/)) {
    close_table()
    column = RLENGTH + 1
    label = substr(text, 1, index(text, " ") - 1)
    print "\\par " label
    table = label ~ /Shapes|Options/
    print (table ? "\\verbatim\n" substr(text, column) : plain(substr(text, column)))
  } else if (table && text ~ /^  /) {
    print substr(text, column)
  } else {
    close_table()
    sub(/^    +/, "", text)
    print plain(text)
  }
  next
}
{ close_block() }
/\/\/\/</ { at = index($0, "///<"); print substr($0, 1, at + 3) plain(substr($0, at + 4)); next }
{ print }
