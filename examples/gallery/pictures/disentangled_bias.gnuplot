# SPDX-License-Identifier: MIT
names = '"mode = {c2p}" "mode = {p2c}" "mode = {c2p, p2c}"'
eval start(530)
set output picture
set multiplot
eval heading('DisentangledBias: n_heads = 1, head_dim = 16, n_positions = 32, at init; random content')
set xrange [-0.5:47.5]
set yrange [47.5:-0.5]
eval colours(2.0)
set xtics 0,8
set ytics 0,8
set xlabel 'key position [tokens]' offset 0,0.4 textcolor rgb ink
do for [panel=0:2] {
  left = pixels(90 + 356 * panel)
  eval place(left, left + pixels(336), pixels_up(80), pixels_up(80 + 336))
  if (panel < 2) { unset colorbox } else { eval box(pixels_up(80), pixels_up(80 + 336), 'added to logits') }
  set title word(names, panel + 1)
  set ylabel panel == 0 ? 'query position [tokens]' : '' offset 0.3,0 textcolor rgb ink
  set format y (panel == 0 ? '%g' : '')
  plot tables.'/disentangled_bias.tsv' index panel matrix with image notitle
  unset label
}
unset multiplot
