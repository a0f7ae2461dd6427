# SPDX-License-Identifier: MIT
# What tokens get, positions to the right and features upwards, two panels in each row. A picture says first: table;
# title; names, a word for each panel; tokens, features, how many; feature, value, what they are called; the range of
# colours; trained, the length of the demo's windows, if there is something behind it.
rows = words(names) / 2
eval start(rows == 1 ? 500 : 790)
set output picture
set multiplot
eval heading(title)
set xrange [-0.5:tokens-0.5]
set yrange [-0.5:features-0.5]
set xtics 0,tokens/4
set ytics 0,features/4
tall = rows == 1 ? 320 : 256
do for [panel=0:2*rows-1] {
  row = panel / 2
  side = panel % 2
  left = pixels(90 + 532 * side)
  bottom = pixels_up(80 + (rows - 1 - row) * 350)
  eval place(left, left + pixels(512), bottom, bottom + pixels_up(tall))
  if (side == 0) { unset colorbox } else { eval box(bottom, bottom + pixels_up(tall), value) }
  set title word(names, panel + 1)
  set ylabel side == 0 ? feature : '' offset 0.3,0 textcolor rgb ink
  set xlabel (row + 1 == rows ? 'position [tokens]' : '') offset 0,0.4 textcolor rgb ink
  set format x (row + 1 == rows ? '%g' : '')
  set format y (side == 0 ? '%g' : '')
  if (side == 1 && exists('trained')) {
    set arrow from trained-0.5,graph 0 to trained-0.5,graph 1 nohead front linecolor rgb ink dashtype 2
  }
  plot table index panel matrix using 2:1:3 with image notitle
  unset label
}
unset multiplot
