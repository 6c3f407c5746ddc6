// Messages why a recording has no score: the service's English message, or its Chinese translation.

// Each pattern matches the first words and the figures of a message of audioscore.data.audio, .data.audio_checks or
// .scoring. tests/services/page/test_refusals.py compares them with the messages of the library.
const CHINESE = [
  [/too short: ([\d.]+) s.*?([\d.]+) s/, "录音太短：只有 $1 秒，至少需要 $2 秒。请多录一些。"],
  [/too long: ([\d.]+) s.*?([\d.]+) s/, "录音太长：$1 秒，最长 $2 秒。请剪短。"],
  [/is ([\d.]+) s long; at most ([\d.]+) s/, "录音太长：$1 秒，最长 $2 秒。请剪短。"],
  [/is longer than ([\d.]+) s/, "录音太长：最长 $1 秒。请剪短。"],
  [/has (\d+) bytes; at most (\d+)/, "文件太大：$1 字节，最大 $2 字节。请换一段较短的录音。"],
  [/phase-cancelled:/, "左右声道相位相反，混合后互相抵消。请只导出其中一个声道。"],
  [/nearly silent: ([\d.]+%)/, "几乎没有声音：$1 是静音。请只保留演唱部分。"],
  [/silent: .*?(-?[\d.]+|-inf) dBFS/, "没有声音：电平为 $1 dBFS。请检查麦克风，或提高音量后重新导出。"],
  [/clipped: (\d+%)/, "削波失真：$1 的采样到达满幅。请降低录音电平后重录。"],
  [/no voice: (\d+%)/, "没有检测到歌声：声音较大的部分只有 $1 有音高。请确认录音中有人演唱。"],
  [/is empty \(0 bytes\)/, "文件是空的（0 字节）。请重新导出。"],
  [/has no audio stream/, "文件中没有音轨。请导出带音轨的文件。"],
  [/holds no audio samples/, "文件中没有音频数据。请重新导出。"],
  [/has (\d+) channels; at most (\d+)/, "声道太多：$1 个声道，最多 $2 个。请混合为单声道或立体声。"],
  [/cannot be decoded/, "无法解码。请重新导出为 m4a、mp3、flac 或 wav。"],
  [/decoding takes longer than ([\d.]+) s/, "解码超过 $1 秒。请重新导出。"],
  [/decoding process ended/, "文件使解码程序异常退出。请重新导出。"],
  [/ends (\d+ bytes before|after [\d.]+ s of)/, "文件不完整。请重新传输。"],
  [/declares a sample rate of (-?\d+) Hz/, "采样率 $1 Hz 不受支持。请重新导出。"],
  [/contains NaN or infinite samples|holds samples up to/, "文件中的采样值异常。请重新导出。"],
  [/the model output is/, "模型无法给出分数。"],
];

/** The message in `language`; a message without a Chinese translation is quoted. */
export function refusal(message, language) {
  if (language !== "zh") {
    const shown = message.replace(/^(the )?(uploaded )?recording: /, ""); // the name of every upload of the page
    return shown.charAt(0).toUpperCase() + shown.slice(1);
  }
  for (const [pattern, chinese] of CHINESE) {
    const found = message.match(pattern);
    if (found) {
      return chinese.replace(/\$(\d)/g, (_, group) => found[group]);
    }
  }
  return `这段录音无法评分：${message}`;
}
