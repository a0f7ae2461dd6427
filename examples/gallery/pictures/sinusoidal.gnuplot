# SPDX-License-Identifier: MIT
table = tables.'/sinusoidal.tsv'
title = 'Sinusoidal: dim = 64'
names = '"layout = interleaved" "layout = half"'
tokens = 128
features = 64
feature = 'feature'
value = 'added to x'
set cbrange [-1:1]
load 'examples/gallery/features.gnuplot'
