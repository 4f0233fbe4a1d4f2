/**
 * The numbers by which GGUF files name the types of their tensors and their mix of them (llama.cpp's `ggml_type` and
 * `llama_ftype`, read from ggml.h, ggml-common.h and llama.h). Numbers that are not here are of types that were
 * removed again or that are newer than this list.
 */

/** How elements of one type lie in a file: in blocks of so many elements, each of so many bytes. */
export interface TensorType {
  readonly name: string;
  readonly blockElements: number;
  readonly blockBytes: number;
}

/** Scale, minimum or both of a block as 16-bit floats. */
const HALF = 2;
/** The elements of a block of the K and I quantisations. */
const K = 256;

export const TENSOR_TYPES: ReadonlyMap<number, TensorType> = new Map([
  [0, type('F32', 1, 4)],
  [1, type('F16', 1, 2)],
  [2, type('Q4_0', 32, HALF + 16)],
  [3, type('Q4_1', 32, 2 * HALF + 16)],
  [6, type('Q5_0', 32, HALF + 4 + 16)],
  [7, type('Q5_1', 32, 2 * HALF + 4 + 16)],
  [8, type('Q8_0', 32, HALF + 32)],
  [9, type('Q8_1', 32, 2 * HALF + 32)],
  [10, type('Q2_K', K, 2 * HALF + K / 16 + K / 4)],
  [11, type('Q3_K', K, HALF + K / 4 + K / 8 + 12)],
  [12, type('Q4_K', K, 2 * HALF + 12 + K / 2)],
  [13, type('Q5_K', K, 2 * HALF + 12 + K / 2 + K / 8)],
  [14, type('Q6_K', K, HALF + K / 16 + (3 * K) / 4)],
  [15, type('Q8_K', K, 4 + K + K / 8)],
  [16, type('IQ2_XXS', K, HALF + K / 4)],
  [17, type('IQ2_XS', K, HALF + K / 4 + K / 32)],
  [18, type('IQ3_XXS', K, HALF + (3 * K) / 8)],
  [19, type('IQ1_S', K, HALF + K / 8 + K / 16)],
  [20, type('IQ4_NL', 32, HALF + 16)],
  [21, type('IQ3_S', K, HALF + (13 * K) / 32 + K / 64)],
  [22, type('IQ2_S', K, HALF + K / 4 + K / 16)],
  [23, type('IQ4_XS', K, 2 * HALF + K / 64 + K / 2)],
  [24, type('I8', 1, 1)],
  [25, type('I16', 1, 2)],
  [26, type('I32', 1, 4)],
  [27, type('I64', 1, 8)],
  [28, type('F64', 1, 8)],
  [29, type('IQ1_M', K, K / 8 + K / 16 + K / 32)],
  [30, type('BF16', 1, 2)],
  [34, type('TQ1_0', K, HALF + K / 64 + (K - K / 16) / 5)],
  [35, type('TQ2_0', K, HALF + K / 4)],
  [39, type('MXFP4', 32, 1 + 16)],
  [40, type('NVFP4', 64, 4 + 32)],
  [41, type('Q1_0', 128, HALF + 16)],
  [42, type('Q2_0', 64, HALF + 16)],
]);

function type(name: string, blockElements: number, blockBytes: number): TensorType {
  return { name, blockElements, blockBytes };
}

/** What `general.file_type` means, in the words that `llama-quantize` takes. */
const FILE_TYPES: ReadonlyMap<number, string> = new Map([
  [0, 'F32'],
  [1, 'F16'],
  [2, 'Q4_0'],
  [3, 'Q4_1'],
  [7, 'Q8_0'],
  [8, 'Q5_0'],
  [9, 'Q5_1'],
  [10, 'Q2_K'],
  [11, 'Q3_K_S'],
  [12, 'Q3_K_M'],
  [13, 'Q3_K_L'],
  [14, 'Q4_K_S'],
  [15, 'Q4_K_M'],
  [16, 'Q5_K_S'],
  [17, 'Q5_K_M'],
  [18, 'Q6_K'],
  [19, 'IQ2_XXS'],
  [20, 'IQ2_XS'],
  [21, 'Q2_K_S'],
  [22, 'IQ3_XS'],
  [23, 'IQ3_XXS'],
  [24, 'IQ1_S'],
  [25, 'IQ4_NL'],
  [26, 'IQ3_S'],
  [27, 'IQ3_M'],
  [28, 'IQ2_S'],
  [29, 'IQ2_M'],
  [30, 'IQ4_XS'],
  [31, 'IQ1_M'],
  [32, 'BF16'],
  [36, 'TQ1_0'],
  [37, 'TQ2_0'],
  [38, 'MXFP4_MOE'],
  [39, 'NVFP4'],
  [40, 'Q1_0'],
  [41, 'Q2_0'],
]);

/** Set in a file type that a tool has guessed from the tensors. */
const GUESSED = 1024;

/** The name of a `general.file_type`, such as `Q4_K_M`; undefined for a number that is not known. */
export function fileTypeName(fileType: number): string | undefined {
  return FILE_TYPES.get(fileType & ~GUESSED);
}
