# awk -v source=<the source tree, seen from the documentation> -f readme.awk: Doxygen's input filter for README.md.
# SPDX-License-Identifier: MIT
#   Headings get the names by which [text](#name) calls them; links and pictures are found in the source tree; the languages
#   of code blocks are spelt Doxygen's way.

/^```/ { code = !code; sub(/^```(sh|cmake)$/, "```"); sub(/^```(cpp|c\+\+)$/, "```{.cpp}") }
code { print; next }
/^## / {
  name = tolower(substr($0, 4))
  gsub(/[^a-z0-9 _-]/, "", name)
  gsub(/ /, "-", name)
  print $0 " {#" name "}"
  next
}
{
  gsub(/\]\((examples|include|bench|tests)/, "](" source "/&")
  gsub(/\/\]\(/, "/")
  gsub(/src="/, "src=\"" source "/")
  print
}
