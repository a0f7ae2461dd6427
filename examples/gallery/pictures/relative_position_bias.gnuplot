# SPDX-License-Identifier: MIT
table = tables.'/relative_position_bias.tsv'
title = 'RelativePositionBias (T5): bidirectional = false, num_buckets = 32, max_distance = 64'
above = 'at init'
below = 'trained on windows of 64 characters; dashed: 64 tokens away'
limits = '3 4'
trained = 64
load 'examples/gallery/heads.gnuplot'
