# SPDX-License-Identifier: MIT
table = tables.'/alibi.tsv'
title = 'ALiBi: n_heads = 4'
above = 'asymmetric = false: the slopes are 1/4, 1/16, 1/64, 1/256'
below = 'asymmetric = true: heads share a slope, 1/4 or 1/64; one looks ahead, one back (grey: hidden)'
limits = '4 4'
load 'examples/gallery/heads.gnuplot'
