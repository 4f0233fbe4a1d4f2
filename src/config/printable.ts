/** Text that may quote anything, as a terminal may get it: what could control it is shown as what it is. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
}
