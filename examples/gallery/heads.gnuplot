# SPDX-License-Identifier: MIT
# Biases of four heads in each of two rows, queries downwards and keys to the right. A picture says first: table; title;
# above and below, what the rows are called; limits, a word for each row, where its colours end; trained, the length of
# the demo's windows, if it was trained there.
eval start(820)
set output picture
set multiplot
eval heading(title)
set xrange [-0.5:127.5]
set yrange [127.5:-0.5]
set xtics 0,32,127
do for [row=0:1] {
  bottom = pixels_up(row == 0 ? 434 : 72)
  top = bottom + pixels_up(256)
  eval colours(real(word(limits, row + 1)))
  set label 2 (row == 0 ? above : below) at screen pixels(90),top+pixels_up(48) textcolor rgb ink
  do for [head=0:3] {
    left = pixels(90 + 266 * head)
    eval place(left, left + pixels(256), bottom, top)
    if (head < 3) { unset colorbox } else { eval box(bottom, top, 'added to logits') }
    set title sprintf('head %d', head)
    set ylabel head == 0 ? 'query position [tokens]' : '' offset 0.3,0 textcolor rgb ink
    set ytics 0,32,127
    set format y (head == 0 ? '%g' : '')
    set format x (row == 1 ? '%g' : '')
    set xlabel row == 1 ? 'key position [tokens]' : '' offset 0,0.4 textcolor rgb ink
    plot table index 4*row+head matrix using 1:2:(shown($3)) with image notitle, \
      x + (exists('trained') ? trained : NaN) with lines linecolor rgb ink dashtype 2 notitle
    unset label
  }
}
unset multiplot
