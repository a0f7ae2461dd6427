# SPDX-License-Identifier: MIT
# All curves in both panels; the right one is the grey part of the left. A name stands where its curve ends.
curves = sprintf("< awk -f examples/gallery/curves.awk '%s/extrapolation.csv'", tables)
inks = '#777777 #e69f00 #d55e00 #cc79a7 #56b4e9 #0072b2 #009e73 #333333 #7b3fa0'  # one for each scheme
eval start(700)
set output picture
set multiplot
eval heading('Trained on windows of 64 characters, tested on longer ones: ./run demo')
set logscale x 2
set xrange [60:530]
set xtics (64, 128, 256, 512)
set grid y linecolor rgb '#cfcfcf' linetype 1
unset key
do for [panel=0:1] {
  left = pixels(90 + 624 * panel)
  eval place(left, left + pixels(330), pixels_up(80), pixels_up(630))
  if (panel == 0) { set yrange [1.9:5.6]; set ytics 0.5 } else { set yrange [2:2.45]; set ytics 0.1 }
  set object 1 rectangle from graph 0,first 2 to graph 1,first 2.45 behind fillcolor rgb '#e8e8e8' fillstyle solid noborder
  set label 3 'bits per character (lower is better)' at screen left-pixels(72),pixels_up(355) center rotate textcolor rgb ink
  set label 2 'length of tested windows [characters]' at screen left+pixels(165),pixels_up(20) center textcolor rgb ink
  name_at(x, bits, name) = name ne '-' && (bits < 2.45) == panel ? x : NaN
  plot for [s=0:8] curves index s using 1:2 with linespoints linewidth 3 pointtype 7 linecolor rgb word(inks, s + 1), \
       for [s=0:8] curves index s using (name_at($1, $2, stringcolumn(3))):2:3 \
         with labels left offset 1,0 textcolor rgb word(inks, s + 1)
  unset label
}
unset multiplot
