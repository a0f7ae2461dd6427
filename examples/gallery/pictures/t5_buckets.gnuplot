# SPDX-License-Identifier: MIT
eval start(620)
set output picture
eval place(pixels(90), pixels(1250), pixels_up(80), pixels_up(560))
eval heading('T5 buckets: num_buckets = 32, max_distance = 128')
set xrange [-160:160]
set yrange [-0.5:31.5]
set xtics 32
set ytics 4
set xlabel 'relative position, key minus query [tokens]' textcolor rgb ink
set ylabel 'bucket' offset 0.3,0 textcolor rgb ink
unset object 1
set grid linecolor rgb '#dddddd' linetype 1
set key at graph 0.97,0.35
table = tables.'/t5_buckets.tsv'
plot table using 1:2 with steps linewidth 3 linecolor rgb '#2869c5' title 'bidirectional = true', \
     table using 1:3 with steps linewidth 3 linecolor rgb '#b53e29' title 'bidirectional = false'
