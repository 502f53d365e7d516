#!/usr/bin/env nextflow

// A cohort: each sample becomes a store, all are scored and clustered together, each gets a report.

process CONVERT {
    tag "${sample}"

    input:
    tuple val(sample), path(images, stageAs: 'images'), path(labels, stageAs: 'labels')

    output:
    path "${sample}.zarr"

    script:
    """
    nimbus-sd convert images ${sample}.zarr --labels "\$PWD/labels" ${params.convert}
    """

    stub:
    """
    mkdir ${sample}.zarr
    """
}

// one task for all samples: they share one normalisation, and one idea of dim and bright
process PREDICT {
    label 'gpu'
    publishDir params.out, pattern: 'cells.h5ad', mode: 'copy'

    input:
    path stores

    output:
    path 'scores/*.zarr', emit: scores
    path 'cells.h5ad', emit: cells

    script:
    """
    nimbus-sd predict ${stores} --out-dir scores --concat cells.h5ad --no-progress ${params.predict}
    """

    stub:
    """
    mkdir scores
    for store in ${stores}; do mkdir scores/\$store; done
    touch cells.h5ad
    """
}

// on copies, which are tables without images: what another task wrote stays as it is
process CLUSTER {
    publishDir params.out, mode: 'copy'

    input:
    path scores, stageAs: 'scores/*'

    output:
    path 'clustered/*.zarr', emit: stores
    path 'clusters.png', emit: plot

    script:
    """
    cp -RL scores clustered
    nimbus-sd cluster clustered/*.zarr --plot clusters.png --key-added cluster ${params.cluster}
    """

    stub:
    """
    cp -RL scores clustered
    touch clusters.png
    """
}

process REPORT {
    tag "${store.baseName}"
    publishDir "${params.out}/reports", mode: 'copy'

    input:
    path store

    output:
    path "${store.baseName}.html"

    script:
    """
    nimbus-sd report ${store} --out ${store.baseName}.html --title ${store.baseName} --groupby cluster --no-images
    """

    stub:
    """
    touch ${store.baseName}.html
    """
}

workflow {
    samples = channel
        .fromPath(params.samples, checkIfExists: true)
        .splitCsv(header: true)
        .map { row ->
            if (!(row.sample ==~ /[\w.-]+/)) {
                error("sample '${row.sample}': names have letters, digits, _ . - only")
            }
            tuple(row.sample, file(row.images, checkIfExists: true), file(row.labels, checkIfExists: true))
        }
    CONVERT(samples)
    PREDICT(CONVERT.out.collect())
    CLUSTER(PREDICT.out.scores)
    REPORT(CLUSTER.out.stores.flatten())
}
