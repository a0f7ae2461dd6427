# SPDX-License-Identifier: MIT
# Turns the demo's table, a row for each scheme, into curves: a block for each scheme, a line for each tested length, with the
# scheme's name in the last.
BEGIN { FS = "," }
NR == 1 {
  for (i = 4; i <= NF; i++) {
    parts = split($i, part, "_")
    length_of[i] = part[parts]
  }
}
NR > 1 {
  for (i = 4; i <= NF; i++)
    if ($i != "") print length_of[i], $i, i < NF && $(i + 1) != "" ? "-" : $1
  print "\n"
}
